// Sliders show and hide what was found; nothing is asked of the server. A name's slider moves alone, the upper one moves all.
const every = selector => [...element.querySelectorAll(selector)];
const limits = () => every(".name input").map(slider => Number(slider.value));
let level = null; // where the upper slider was left; the next image begins there

function draw() {
  const limit = limits();
  every("svg").forEach(svg => {
    const labels = {}; // how many stand at a place: a box can be several names', and their labels are stacked
    [...svg.querySelectorAll("g")].reverse().forEach(box => { // the best first
      const text = box.querySelector("text"), place = `${text.getAttribute("x")} ${text.getAttribute("y")}`;
      const hidden = box.toggleAttribute("hidden", Number(box.dataset.score) < limit[box.dataset.name]);
      if (!hidden) labels[place] = (labels[place] ?? -1) + 1;
      text.setAttribute("dy", `${1.3 * (labels[place] ?? 0)}em`);
    });
  });
  every(".all input, .name input").forEach(slider => slider.nextElementSibling.textContent = Number(slider.value).toFixed(2));
  every(".name").forEach((row, place) => {
    const counts = every("svg").map(svg => svg.querySelectorAll(`g[data-name="${place}"]:not([hidden])`).length);
    row.querySelector("output").textContent += `  ${counts.join(" → ")} found`;
  });
}

element.addEventListener("input", ({ target }) => {
  if (target.matches(".all input")) {
    level = target.value;
    every(".name input").forEach(slider => slider.value = level);
  }
  draw();
});

element.addEventListener("click", ({ target }) => {
  if (!target.matches(".all button")) return;
  const found = JSON.parse(element.querySelector(".found").dataset.found), limit = limits();
  const kept = ({ class: name, score }) => score >= limit[found.classes.indexOf(name)];
  found.images.forEach(image => image.detections = image.detections.filter(kept));
  const file = new Blob([JSON.stringify(found, null, 2) + "\n"], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "predictions.json" });
  link.click();
  URL.revokeObjectURL(link.href);
});

watch("value", () => {
  every(".all input, .name input").forEach(slider => slider.value = level ?? slider.getAttribute("value"));
  draw();
});
