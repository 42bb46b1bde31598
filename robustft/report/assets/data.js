// What the page is about, what is chosen, and the small tools every section uses.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { runs, groups, panels, curves, images } = data;
const state = { panel: 0, x: "id", y: "ood_avg", colour: "kind", marker: "fillkind", mean: true,
  curves: {}, filter: "", sort: "ood_avg", descending: true, run: 0, facet: 0 };
// Systems' main dials, each with the name that people give it.
const dials = [...new Map(curves.map((curve) => [curve.dial, curve.name]))];
for (const [dial] of dials) state.curves[dial] = true;
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const drawn = /^(svg|path|line|text|polyline|rect|g)$/.test(tag);
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
// Names, keys and paths as text that breaks after their separators before it breaks anywhere else.
const breakable = (text) => String(text).replace(/([._/=])(?=[a-z])/gi, "$1\n").split("\n")
  .flatMap((part, k) => k ? [make("wbr"), part] : [part]);
// Ties are rounded up, as in the printed tables.
const rounded = (fraction) => (Math.round(Math.abs(fraction) * 1000 + 1e-9) / 10).toFixed(1);
const percent = (fraction) => fraction == null ? "–" : (fraction < 0 ? "−" : "") + rounded(fraction);
const known = (values) => values.filter((value) => value !== null && value !== undefined);
const mean = (values) => values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
function deviation(values) {
  if (values.length < 2) return null;
  const centre = mean(values);
  return Math.sqrt(values.reduce((sum, v) => sum + (v - centre) ** 2, 0) / (values.length - 1));
}
const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
  : String(a).localeCompare(String(b), undefined, { numeric: true });
const distinct = (values) => [...new Set(values)].sort(order);

const COLUMNS = {
  kind: ["mask or method", (run) => run.mask ? `${run.mask} mask` : run.system],
  fillkind: ["fill or method", (run) => run.mask ? `${run.fill === "none" ? "no" : run.fill}-fill` : run.system],
  method: ["method", (run) => run.system], mask: ["mask", (run) => run.mask], fill: ["fill", (run) => run.fill],
  threshold: ["threshold", (run) => run.threshold], rate: ["rate", (run) => run.rate],
  beta: ["β", (run) => run.beta], alpha: ["α", (run) => run.alpha],
  temperature: ["temperature", (run) => run.temperature], seed: ["seed", (run) => run.seed],
};
const column = (key, run) => COLUMNS[key][1](run) ?? "none";
const panel = () => panels[state.panel];
const panelRuns = () => panel().runs.map((index) => runs[index]);
function metrics() {
  const all = [["id", `ID ${panel().id_label}`], ["ood_avg", "OOD avg"], ...panel().sets, ["holdout", "hold-out"]];
  return all.filter(([key]) => panelRuns().some((run) => value(run, key) !== null));
}
const metricName = (key) => (metrics().find(([name]) => name === key) ?? [key, key])[1];
// Top-1 is a fraction by its place alone; other metrics are named behind a dot and may have another unit.
const axes = () => [...metrics().map(([key, name]) => [key, name, "%", ", top-1"]),
  ...panel().metrics.filter(([key]) => panelRuns().some((run) => value(run, key) !== null))];
const axis = (key) => axes().find(([name]) => name === key) ?? [key, key, "%"];
const scaleFor = (key) => axis(key)[2] === "%" ? 100 : 1;
const axisName = (key) => axis(key)[1] + (axis(key)[3] ?? "") + (axis(key)[2] ? ` (${axis(key)[2]})` : "");
const written = (key, number) => scaleFor(key) === 100 ? percent(number) : number.toFixed(3);
const value = (run, metric) => (metric in run ? run[metric] : run.ood[metric] ?? run.more[metric]) ?? null;
// One value a seed, the mean of its runs; what has no seed stands for itself.
function values(group, metric) {
  const parts = new Map();
  for (const run of group.runs.map((index) => runs[index])) {
    const found = value(run, metric), key = run.seed ?? `run ${run.index}`;
    if (found !== null) parts.set(key, [...(parts.get(key) ?? []), found]);
  }
  return [...parts.values()].map(mean);
}
const observations = (group) => new Set(group.runs.map((index) => runs[index].seed ?? `run ${index}`)).size;
const groupOf = (run) => groups[run.group];
// Sweeps may give all their runs one name: then the settings tell them apart.
function longName(run, across = true) {
  const own = panelsOf.get(run.index), shared = namesakes.get(own).get(run.name) > 1;
  const parts = [run.name, across && panels.length > 1 && own.title, shared && describe(run)];
  return parts.filter(Boolean).join(" · ");
}
const panelsOf = new Map(panels.flatMap((one) => one.runs.map((index) => [index, one])));
const namesakes = new Map(panels.map((one) => {
  const counts = new Map();
  for (const index of one.runs) counts.set(runs[index].name, (counts.get(runs[index].name) ?? 0) + 1);
  return [one, counts];
}));

function shown() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  return panelRuns().filter((run) => {
    const text = `${run.name} ${groupOf(run).label} ${run.method} seed-${run.seed}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}
function describe(run) {
  const settings = [["mask", run.mask], ["fill", run.fill], ["threshold", run.threshold], ["rate", run.rate],
    ["β", run.beta], ["α", run.alpha], ["T", run.temperature], ["seed", run.seed]];
  return settings.filter(([, v]) => v !== null && v !== undefined).map(([name, v]) => `${name} ${v}`).join(" · ");
}
