// Names and messages are always inserted as text; nothing from the data set becomes HTML.
const $ = id => document.getElementById(id);
const unreachable = "The server does not respond. Is groundtune review still running?";
let images = [], boxes = new Map(), classes = [], undo = 0, total = 0, current = null, loaded = null;

async function request(path, body) {
  const post = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, post).catch(() => { throw new Error(unreachable); });
  if (!response.ok) throw new Error(await response.text());
  return response;
}

const nameOf = box => classes.find(one => one.id === box.class)?.name ?? "(no class)";
const colorOf = box => `hsl(${(classes.findIndex(one => one.id === box.class) * 137.5 + 200) % 360} 75% 45%)`;
const scoreOf = box => box.score === null ? "accepted" : box.score.toFixed(2);
const inOrder = (a, b) => a.imageIndex - b.imageIndex || a.key - b.key;

function selected() {
  const [all, id, maxScore] = [$("show").value, $("class").value, Number($("max-score").value)];
  return [...boxes.values()].filter(box => (all || box.score !== null) && (!id || String(box.class) === id)
    && (box.score === null || box.score <= maxScore)).sort(inOrder);
}

function move(step) {
  const list = step > 0 ? selected() : selected().reverse();
  current = (current && list.find(box => inOrder(box, current) * step > 0)) ?? list[0] ?? null;
  $("message").textContent = "";
  show();
}

function show() {
  const left = [...boxes.values()].filter(box => box.score !== null).length;
  total = Math.max(total, left);
  $("bar").value = total ? 1 - left / total : 1;
  $("progress").textContent = `${total - left} of ${total} reviewed`;
  $("undo").disabled = !undo;
  ["accept", "reject", "name"].forEach(id => $(id).disabled = !current);
  $("box").textContent = current ? `${nameOf(current)}  ${scoreOf(current)}` : "No boxes left to review.";
  $("name").value = "";
  const image = current && images[current.imageIndex];
  $("caption").textContent = image ? `${image.name}  (image ${current.imageIndex + 1} of ${images.length})` : "";
  $("list").replaceChildren(...(image ? inImage().map(listItem) : []));
  const row = $("list").querySelector(".current"); // scroll only the list: on a phone the image has to stay
  if (row) $("list").scrollTop = row.offsetTop - $("list").offsetTop - $("list").clientHeight / 2;
  if (!image) { loaded = null; $("image").hidden = $("problem").hidden = true; }
  else if (loaded !== image.id) load(image);
  draw();
}

const inImage = () => [...boxes.values()].filter(box => box.image === current.image).sort(inOrder);

function listItem(box) {
  const item = document.createElement("li"), button = document.createElement("button");
  const [dot, name, score] = ["i", "span", "small"].map(tag => button.appendChild(document.createElement(tag)));
  dot.style.background = colorOf(box);
  name.textContent = nameOf(box);
  score.textContent = scoreOf(box);
  button.className = box.key === current.key ? "current" : "";
  button.addEventListener("click", () => choose(box));
  item.append(button);
  return item;
}

function choose(box) { current = box; $("message").textContent = ""; show(); }

async function load(image) {
  loaded = image.id;
  $("image").hidden = $("problem").hidden = true;
  try {
    const blob = await (await request(`image/${image.id}`)).blob();
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
  const { width, height } = images[current.imageIndex];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const make = (tag, values) => {
    const element = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
    Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value));
    return element;
  };
  const others = inImage().filter(box => box.key !== current.key);
  [...others, current].forEach(box => {
    const [x, y, w, h] = box.box_xywh;
    const rect = make("rect", { x, y, width: Math.max(w, 0), height: Math.max(h, 0), class: box.key === current.key ? "current" : "" });
    rect.style.stroke = colorOf(box);
    rect.addEventListener("click", () => choose(box));
  });
  const [x, y] = current.box_xywh, pixel = width / ($("image").clientWidth || width);
  const text = make("text", { x: Math.max(x, 0), y: Math.max(y - 5 * pixel, 15 * pixel), "font-size": 14 * pixel, "stroke-width": 4 * pixel });
  text.style.stroke = colorOf(current);
  text.textContent = `${nameOf(current)} ${scoreOf(current)}`;
  if (x > width / 2) { text.setAttribute("text-anchor", "end"); text.setAttribute("x", Math.min(x + current.box_xywh[2], width)); }
}

let queue = Promise.resolve(); // decisions one after the other, however fast the keys are
const decide = (action, name) => queue = queue.then(async () => {
  if (!current && action !== "undo") return;
  try {
    const state = await (await request("decide", { do: action, key: current?.key, name })).json();
    update(state);
    if (state.box) boxes.set(state.key, withIndex(state.box)); else boxes.delete(state.key);
    if (action === "undo") choose(boxes.get(state.key)); else move(1);
  } catch (error) { $("message").textContent = error.message; }
});

const withIndex = box => ({ ...box, imageIndex: images.findIndex(image => image.id === box.image) });

function update(state) {
  undo = state.undo;
  if (classes.length === state.classes.length && classes.length) return;
  classes = state.classes;
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
["show", "class", "max-score"].forEach(id => $(id).addEventListener("input", () => {
  $("max-score-value").textContent = Number($("max-score").value).toFixed(2);
  current = null;
  move(1);
}));
window.addEventListener("resize", draw);

request("boxes").then(response => response.json()).then(state => {
  images = state.images;
  boxes = new Map(state.boxes.map(box => [box.key, withIndex(box)]));
  update(state);
  move(1);
}).catch(error => { $("problem").textContent = error.message; $("problem").hidden = false; });
