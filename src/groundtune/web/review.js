// Names, files and messages are text wherever they are shown; nothing of the data set becomes HTML.
const $ = id => document.getElementById(id);
const gone = "The server does not answer. Is groundtune review still running?";
let images = [], boxes = new Map(), classes = [], undo = 0, total = 0, current = null, loaded = null;

async function ask(path, order) {
  const post = order && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(order) };
  const answer = await fetch(path, post).catch(() => { throw new Error(gone); });
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

const nameOf = box => classes.find(one => one.id === box.class)?.name ?? "(no class)";
const colorOf = box => `hsl(${(classes.findIndex(one => one.id === box.class) * 137.5 + 200) % 360} 75% 45%)`;
const scoreOf = box => box.score === null ? "accepted" : box.score.toFixed(2);
const place = box => images.findIndex(one => one.id === box.image);
const inOrder = (a, b) => a.place - b.place || a.key - b.key;

function wanted() {
  const [which, name, most] = [$("which").value, $("class").value, Number($("most").value)];
  return [...boxes.values()].filter(box => (which || box.score !== null) && (!name || String(box.class) === name)
    && (box.score === null || box.score <= most)).sort(inOrder);
}

function move(step) {
  const list = step > 0 ? wanted() : wanted().reverse();
  current = (current && list.find(box => inOrder(box, current) * step > 0)) ?? list[0] ?? null;
  $("said").textContent = "";
  show();
}

function show() {
  const left = [...boxes.values()].filter(box => box.score !== null).length;
  total = Math.max(total, left);
  $("bar").value = total ? 1 - left / total : 1;
  $("progress").textContent = `${total - left} of ${total} decided`;
  $("undo").disabled = !undo;
  ["accept", "reject", "name"].forEach(id => $(id).disabled = !current);
  $("box").textContent = current ? `${nameOf(current)}  ${scoreOf(current)}` : "Nothing is left to decide here.";
  $("name").value = "";
  const image = current && images[current.place];
  $("caption").textContent = image ? `${image.name}  (image ${current.place + 1} of ${images.length})` : "";
  $("list").replaceChildren(...(image ? inImage().map(row) : []));
  const now = $("list").querySelector(".now"); // the list alone is scrolled: on a telephone the image has to stay
  if (now) $("list").scrollTop = now.offsetTop - $("list").offsetTop - $("list").clientHeight / 2;
  if (!image) { loaded = null; $("image").hidden = $("problem").hidden = true; }
  else if (loaded !== image.id) load(image);
  draw();
}

const inImage = () => [...boxes.values()].filter(box => box.image === current.image).sort(inOrder);

function row(box) {
  const item = document.createElement("li"), button = document.createElement("button");
  const [dot, name, score] = ["i", "span", "small"].map(tag => button.appendChild(document.createElement(tag)));
  dot.style.background = colorOf(box);
  name.textContent = nameOf(box);
  score.textContent = scoreOf(box);
  button.className = box.key === current.key ? "now" : "";
  button.addEventListener("click", () => choose(box));
  item.append(button);
  return item;
}

function choose(box) { current = box; $("said").textContent = ""; show(); }

async function load(image) {
  loaded = image.id;
  $("image").hidden = $("problem").hidden = true;
  try {
    const blob = await (await ask(`image/${image.id}`)).blob();
    if (loaded !== image.id) return;
    URL.revokeObjectURL($("image").src);
    $("image").src = URL.createObjectURL(blob);
    await $("image").decode();
    $("image").hidden = loaded !== image.id;
  } catch (error) {
    if (loaded !== image.id) return;
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
  draw();
}

function draw() {
  const svg = $("drawn"), shown = current && !$("image").hidden;
  svg.replaceChildren();
  if (!shown) return;
  const { width, height } = images[current.place];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const make = (tag, values) => {
    const element = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
    Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value));
    return element;
  };
  const others = inImage().filter(box => box.key !== current.key);
  [...others, current].forEach(box => {
    const [x, y, w, h] = box.box_xywh;
    const rect = make("rect", { x, y, width: Math.max(w, 0), height: Math.max(h, 0), class: box.key === current.key ? "now" : "" });
    rect.style.stroke = colorOf(box);
    rect.addEventListener("click", () => choose(box));
  });
  const [x, y] = current.box_xywh, pixel = width / ($("image").clientWidth || width);
  const text = make("text", { x: Math.max(x, 0), y: Math.max(y - 5 * pixel, 15 * pixel), "font-size": 14 * pixel, "stroke-width": 4 * pixel });
  text.style.stroke = colorOf(current);
  text.textContent = `${nameOf(current)} ${scoreOf(current)}`;
  if (x > width / 2) { text.setAttribute("text-anchor", "end"); text.setAttribute("x", Math.min(x + current.box_xywh[2], width)); }
}

let work = Promise.resolve(); // decisions one after the other, however fast the keys are
const decide = (what, name) => work = work.then(async () => {
  if (!current && what !== "undo") return;
  try {
    const answer = await (await ask("decide", { do: what, key: current?.key, name })).json();
    take(answer);
    if (answer.box) boxes.set(answer.key, placed(answer.box)); else boxes.delete(answer.key);
    if (what === "undo") choose(boxes.get(answer.key)); else move(1);
  } catch (error) { $("said").textContent = error.message; }
});

const placed = box => ({ ...box, place: place(box) });

function take(answer) {
  undo = answer.undo;
  if (classes.length === answer.classes.length && classes.length) return;
  classes = answer.classes;
  const chosen = $("class").value, option = (text, value) => new Option(text, value);
  $("class").replaceChildren(option("all", ""), ...classes.map(one => option(one.name, one.id)));
  $("class").value = classes.some(one => String(one.id) === chosen) ? chosen : "";
  $("names").replaceChildren(...classes.map(one => option(one.name, one.name)));
}

const keys = { a: () => decide("accept"), r: () => decide("reject"), u: () => decide("undo"), n: () => move(1), p: () => move(-1) };
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("#name, select")) return;
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
[["accept", "a"], ["reject", "r"], ["undo", "u"], ["next", "n"], ["previous", "p"]].forEach(([id, key]) =>
  $(id).addEventListener("click", keys[key]));
$("rename").addEventListener("submit", event => {
  event.preventDefault();
  const name = $("name").value;
  $("name").blur();
  decide("rename", name);
});
["which", "class", "most"].forEach(id => $(id).addEventListener("input", () => {
  $("limit").textContent = Number($("most").value).toFixed(2);
  current = null;
  move(1);
}));
window.addEventListener("resize", draw);

ask("boxes").then(answer => answer.json()).then(answer => {
  images = answer.images;
  boxes = new Map(answer.boxes.map(box => [box.key, placed(box)]));
  take(answer);
  move(1);
}).catch(error => { $("problem").textContent = error.message; $("problem").hidden = false; });
