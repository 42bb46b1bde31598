// Images are dropped, sent to the server that this page came from, and what it says of them is drawn.
"use strict";

const state = { images: [], chosen: null, about: null };
const $ = (id) => document.getElementById(id);
const part = (section, selector) => document.querySelector(`#${section} ${selector}`);
let line = Promise.resolve();  // answers for many images: one after the other

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const capital = (text) => text[0].toUpperCase() + text.slice(1);
// Names as text that breaks after their separators before it breaks anywhere else.
const breakable = (text) => text.split(/(?<=[._/=-])/).flatMap((piece, k) => k ? [make("wbr"), piece] : [piece]);
// Ties are rounded up, as in the printed tables.
const percent = (fraction) => (Math.round(fraction * 1000 + 1e-9) / 10).toFixed(1);
const limit = () => `${state.about.limit / 2 ** 20} MB`;
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function ask(where, file) {
  let options = {};
  if (file) {
    let body;
    try {
      body = await file.arrayBuffer();
    } catch {
      throw new Error("cannot be read (a folder?)");
    }
    const known = file.type.startsWith("image/");
    options = { method: "POST", body, headers: { "Content-Type": known ? file.type : "application/octet-stream" } };
  }
  let answer;
  try {
    answer = await fetch(where, options);
  } catch {
    throw new Error("the server does not answer. Is robustft app still running?");
  }
  const told = await answer.json().catch(() => ({ error: `the server failed (${answer.status}): its terminal says why` }));
  if (!answer.ok) throw new Error(told.error);
  return told;
}
function complain(text) { $("problems").append(make("li", {}, text)); }

// Images come in

function take(files) {
  const drop = { shown: false };  // its first readable image is, unless another has been chosen meanwhile
  $("problems").replaceChildren();
  for (const file of files) {
    if (file.size > state.about.limit) {
      complain(`${file.name}: larger than ${limit()}, the most that is taken`);
      continue;
    }
    const image = { file, name: file.name || "pasted image", drop, told: null, target: null, draw: 0 };
    state.images.push(image);
    line = line.then(() => answer(image));
  }
  drawStrip();
}
async function answer(image) {
  try {
    image.told = await ask("/answers", image.file);
  } catch (error) {
    state.images = state.images.filter((other) => other !== image);
    complain(`${image.name}: ${error.message}`);
    drawStrip();
    return;
  }
  drawStrip();
  if (!image.drop.shown) choose(image);
}

function choose(image) {
  state.chosen = image;
  for (const { drop } of state.images) drop.shown = true;
  document.querySelector("main").hidden = false;
  document.body.classList.remove("empty");
  drawStrip();
  drawAnswers();
  look();
  nearest();
}

// What is drawn

function drawStrip() {
  const held = document.activeElement?.dataset?.index;
  $("strip").replaceChildren(...state.images.map((image, index) => {
    if (!image.told) return make("li", {}, make("button", { disabled: "" },
      make("span", { class: "none" }, "…"), make("span", {}, image.name)));
    const best = state.about.models.map((model) => image.told.answers[model][0][0]);
    const differ = new Set(best).size > 1;
    return make("li", {}, make("button", { type: "button", "data-index": index,
      "aria-current": image === state.chosen, onclick: () => choose(image) },
      make("img", { src: image.told.picture, alt: image.name }),
      make("span", {}, best.at(-1)),
      differ ? make("span", { class: "differs" }, `zero-shot: ${best[0]}`) : null));
  }));
  if (held !== undefined) document.querySelector(`#strip [data-index="${held}"]`)?.focus();
}
function drawAnswers() {
  const { name, told, target } = state.chosen, models = state.about.models;
  const picture = part("whole", "img");
  picture.src = told.picture;
  picture.alt = name;
  part("whole", "figcaption").replaceChildren(name, make("span", { class: "hint" }, `${told.size.join(" × ")} pixels`));
  const best = models.map((model) => told.answers[model][0][0]);
  const bold = (text) => make("b", {}, text);
  const said = models.length === 1 ? [`${capital(models[0])}: `, bold(best[0]), "."]
    : best[0] === best[1] ? ["Both say ", bold(best[0]), "."]
    : [`${capital(models[0])} says `, bold(best[0]), `, ${models[1]} says `, bold(best[1]), "."];
  $("verdict").replaceChildren(...said);
  $("lists").replaceChildren(...models.map((model) => make("div", { class: model },
    make("h3", {}, model), make("ol", {}, ...told.answers[model].map(([label, share, index]) => {
      const bar = make("i");
      bar.style.width = `${100 * share}%`;
      const words = [make("span", {}, label), make("span", {}, `${percent(share)} %`)];
      const row = state.about.maps
        ? make("button", { type: "button", "aria-pressed": target === index, title: `explain ${label}`,
          onclick: () => explain(index) }, ...words)
        : make("div", { class: "row" }, ...words);
      return make("li", {}, row, make("div", { class: "bar" }, bar));
    })))));
}
function explain(index) {
  state.chosen.target = index;
  $("class").value = index;
  drawAnswers();
  look();
}
const tile = ({ title, note, picture, used }, ...more) => make("figure", { class: used ? "used" : "" },
  make("img", { src: picture, alt: note ? `${title}: ${note}` : title }),
  make("figcaption", {}, make("b", {}, title), used ? make("span", { class: "badge" }, "this run’s") : null,
    note ? make("span", { class: "hint" }, note) : null, ...more));

async function look() {
  const image = state.chosen, { target, draw } = image;
  const busy = ["maps", "samples"].map((section) => part(section, ".tiles"));
  for (const node of busy) node.setAttribute("aria-busy", "true");
  let found;
  try {
    found = await ask(`/look?draw=${draw}${target === null ? "" : `&class=${target}`}`, image.file);
  } catch (error) {
    if (image === state.chosen) complain(`${image.name}: ${error.message}`);
    return;
  }
  // Something else was chosen meanwhile.
  if (image !== state.chosen || image.draw !== draw || (target !== null && image.target !== target)) return;
  if (image.target === null) {
    image.target = found.target;
    drawAnswers();
  }
  $("class").value = image.target;
  busy[0].replaceChildren(tile(found.seen), ...(found.maps ?? []).map((map) => tile(map)));
  if (found.maps) drawSamples(found, busy[1]);
  for (const node of busy) node.setAttribute("aria-busy", "false");
}
function drawSamples(found, tiles) {
  const label = state.about.classes[found.target], two = typeof found.agreement === "number";
  part("samples", ".hint").textContent = [
    `Masks are made from the ${found.whose} model’s map (${found.by}) for ${label}.`,
    found.illustration ? "This run trains without: an illustration." : "Orange: what this run trains with.",
    `Under a sample: what ${two ? "the models say of it, and how alike their features are (cosine; "
      + `${found.agreement.toFixed(2)} on the image itself)` : "the model says of it"}.`,
    found.note ?? ""].join(" ").trim();
  const said = ({ says, agreement }) => [
    ...Object.entries(says).map(([model, [name]]) => make("span", { class: "hint" }, `${model}: ${name}`)),
    two ? make("span", { class: "hint" }, `cosine ${agreement.toFixed(2)}`) : null];
  tiles.replaceChildren(
    ...found.masks.map((mask) => tile({ ...mask, note: `${mask.note}, ${Math.round(100 * mask.masked)} % masked` })),
    ...found.fills.map((fill) => tile({ ...fill, note: `${fill.note}` }, ...said(fill))));
  $("again").hidden = found.note !== null;
}
async function nearest() {
  const image = state.chosen, section = $("nearest"), tiles = part("nearest", ".tiles");
  const note = part("nearest", ".hint"), bar = part("nearest", "progress");
  tiles.setAttribute("aria-busy", "true");
  try {
    let found = await ask("/nearest", image.file);
    while (!found.ready && !found.note) {
      if (image !== state.chosen) return;
      bar.hidden = false;
      bar.max = found.of;
      bar.value = found.done;
      note.textContent = `Encoding the training images, once: ${found.done.toLocaleString("en")} of `
        + `${found.of.toLocaleString("en")}.`;
      await pause(0.7);
      found = await ask("/nearest");
      if (found.ready) found = await ask("/nearest", image.file);
    }
    if (image !== state.chosen) return;
    bar.hidden = true;
    section.classList.toggle("without", Boolean(found.note));
    note.textContent = found.note ?? `By the ${state.about.models.at(-1)} model’s features, `
      + `among ${found.of.toLocaleString("en")} training images; the number is the cosine.`;
    tiles.replaceChildren(...(found.images ?? []).map((one) => make("figure", { title: one.name },
      one.picture ? make("img", { src: one.picture, alt: `${one.class}: ${one.name}` }) : null,
      make("figcaption", {}, one.class, make("span", { class: "hint" }, one.cosine.toFixed(2))))));
    tiles.setAttribute("aria-busy", "false");
  } catch (error) {
    bar.hidden = true;
    if (image === state.chosen) note.textContent = `Not shown: ${error.message}`;
  }
}

async function start() {
  try {
    state.about = await ask("/about");
  } catch (error) {
    complain(error.message);
    return;
  }
  const { name, about, classes, notes, maps } = state.about;
  document.title = `${name} · robustft app`;
  $("name").replaceChildren(...breakable(name));
  $("about").textContent = about;
  $("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
  $("limit").textContent = ` At most ${limit()} each.`;
  $("class").replaceChildren(...classes.map((label, index) => make("option", { value: index }, label)));
  $("class").closest("p").hidden = part("maps", ".scale").hidden = $("samples").hidden = !maps;
  if (!maps) part("maps", "h2").textContent = "What the model sees";
  $("files").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
  $("class").addEventListener("change", (event) => explain(+event.target.value));
  $("again").addEventListener("click", () => { state.chosen.draw += 1; look(); });
  const over = (is) => document.body.classList.toggle("over", is);
  addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    take(event.dataTransfer.files);
    if (!event.dataTransfer.files.length) complain("That was no file. A picture of another page can be copied and pasted.");
  });
  addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
  document.documentElement.dataset.ready = "yes";
}
start();
