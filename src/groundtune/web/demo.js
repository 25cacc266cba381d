// Sliders show and hide detections without the server. The upper slider moves the sliders of all classes.
const all = selector => [...element.querySelectorAll(selector)];
const thresholds = () => all(".name input").map(slider => Number(slider.value));
let common = null; // value of the upper slider, which the next image starts with

function draw() {
  const values = thresholds();
  all("svg").forEach(svg => {
    const labels = {}; // number of labels by position: boxes of several classes can coincide, and labels are stacked
    [...svg.querySelectorAll("g")].reverse().forEach(box => { // best first
      const text = box.querySelector("text"), position = `${text.getAttribute("x")} ${text.getAttribute("y")}`;
      const hidden = box.toggleAttribute("hidden", Number(box.dataset.score) < values[box.dataset.class]);
      if (!hidden) labels[position] = (labels[position] ?? -1) + 1;
      text.setAttribute("dy", `${1.3 * (labels[position] ?? 0)}em`);
    });
  });
  all(".all input, .name input").forEach(slider => slider.nextElementSibling.textContent = Number(slider.value).toFixed(2));
  all(".name").forEach((row, index) => {
    const counts = all("svg").map(svg => svg.querySelectorAll(`g[data-class="${index}"]:not([hidden])`).length);
    row.querySelector("output").textContent += `  boxes: ${counts.join(" → ")}`;
  });
}

element.addEventListener("input", ({ target }) => {
  if (target.matches(".all input")) {
    common = target.value;
    all(".name input").forEach(slider => slider.value = common);
  }
  draw();
});

element.addEventListener("click", ({ target }) => {
  if (!target.matches(".all button")) return;
  const results = JSON.parse(element.querySelector(".results").dataset.results), values = thresholds();
  const shown = ({ class: name, score }) => score >= values[results.classes.indexOf(name)];
  results.images.forEach(image => image.detections = image.detections.filter(shown));
  const file = new Blob([JSON.stringify(results, null, 2) + "\n"], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "predictions.json" });
  link.click();
  URL.revokeObjectURL(link.href);
});

watch("value", () => {
  all(".all input, .name input").forEach(slider => slider.value = common ?? slider.getAttribute("value"));
  draw();
});
