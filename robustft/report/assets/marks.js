// Colours and shapes.

// Okabe and Ito's colours and one shape each: told apart with any colour vision, and in grey.
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"];
const FIXED_COLOURS = { "object mask": "#D55E00", object: "#D55E00", "context mask": "#0072B2", context: "#0072B2",
  "random mask": "#009E73", random: "#009E73", members: "#999999", none: "#999999" };
const SHAPES = ["circle", "triangle", "square", "diamond", "cross", "pentagon", "down", "plus", "hexagon", "star"];
const FIXED_SHAPES = { "no-fill": "circle", none: "circle", "single-fill": "triangle", single: "triangle",
  "multi-fill": "square", multi: "square", members: "circle" };
// Systems without a mask say themselves how they are drawn, in matplotlib's letters.
const LETTERS = { "*": "star", X: "cross", P: "plus", v: "down", D: "diamond", d: "diamond", p: "pentagon",
  h: "hexagon", o: "circle", "^": "triangle", s: "square" };
for (const run of runs) {
  if (run.mask || !run.look) continue;
  if (run.look.colour) FIXED_COLOURS[run.system] = run.look.colour;
  if (LETTERS[run.look.shape]) FIXED_SHAPES[run.system] = LETTERS[run.look.shape];
}
const CIVIDIS = [[0, 32, 77], [66, 78, 108], [124, 123, 120], [188, 175, 111], [255, 234, 70]];

function cividis(t) {
  const place = Math.min(Math.max(t, 0), 1) * (CIVIDIS.length - 1), low = Math.min(Math.floor(place), 3);
  const mix = CIVIDIS[low].map((c, k) => Math.round(c + (CIVIDIS[low + 1][k] - c) * (place - low)));
  return `rgb(${mix})`;
}
function scaleOf(key, fixed, cycle) {
  const kinds = distinct(panelRuns().map((run) => column(key, run)));
  const numbers = kinds.filter((kind) => typeof kind === "number");
  const free = cycle.filter((entry) => !kinds.some((kind) => fixed[kind] === entry));
  let next = 0;
  const chosen = new Map(kinds.map((kind) => {
    if (cycle === PALETTE && typeof kind === "number")
      return [kind, cividis(0.92 * numbers.indexOf(kind) / Math.max(numbers.length - 1, 1))];
    return [kind, fixed[kind] ?? (free.length ? free : cycle)[next++ % (free.length || cycle.length)]];
  }));
  return (run) => chosen.get(column(key, run));
}
function symbol(shape, r) {
  const corners = (n, turn, inner) => Array.from({ length: n }, (_, k) => {
    const angle = turn + 2 * Math.PI * k / n, radius = inner && k % 2 ? r * inner : r;
    return `${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`;
  }).join("L");
  const a = r * 0.36, b = r * 0.95;
  const plus = `M${-a} ${-b}H${a}V${-a}H${b}V${a}H${a}V${b}H${-a}V${a}H${-b}V${-a}H${-a}Z`;
  const c = a * 1.1, d = b * 0.6, e = r * 0.9;
  const cross = [[0, -c], [d, -b], [b, -d], [c, 0], [b, d], [d, b],
    [0, c], [-d, b], [-b, d], [-c, 0], [-b, -d], [-d, -b]];
  return {
    circle: `M${-e} 0a${e} ${e} 0 1 0 ${2 * e} 0a${e} ${e} 0 1 0 ${-2 * e} 0Z`, plus,
    cross: `M${cross.map((point) => point.join(" ")).join("L")}Z`, square: `M${corners(4, Math.PI / 4)}Z`,
    triangle: `M${corners(3, 0)}Z`, down: `M${corners(3, Math.PI)}Z`, diamond: `M${corners(4, 0)}Z`,
    pentagon: `M${corners(5, 0)}Z`, hexagon: `M${corners(6, 0)}Z`, star: `M${corners(10, 0, 0.42)}Z`,
  }[shape];
}
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-9; t += step) found.push(+t.toFixed(6));
  return found;
}
