// The ID-OOD scatter: points, curves, error bars, legend, tooltip, keyboard.

let points = [], focus = -1;  // focus: the point that the arrow keys have reached, or that was clicked last

function drawScatter() {
  const width = Math.max($("plot").clientWidth, 280);
  const height = Math.round(Math.min(Math.max(width * 0.58, 330), 560));
  const box = { left: 54, right: width - 12, top: 12, bottom: height - 42 };
  const colour = scaleOf(state.colour, FIXED_COLOURS, PALETTE), shape = scaleOf(state.marker, FIXED_SHAPES, SHAPES);
  const all = shown(), placed = all.filter((run) => value(run, state.x) !== null && value(run, state.y) !== null);
  const fx = scaleFor(state.x), fy = scaleFor(state.y);
  const xs = placed.map((run) => fx * value(run, state.x)), ys = placed.map((run) => fy * value(run, state.y));
  const span = (list, least) => {
    const low = Math.min(...list), high = Math.max(...list), room = Math.max((high - low) * 0.06, least);
    return list.length ? [low - room, high + room] : [0, 100 * least];
  };
  const [x0, x1] = span(xs, fx / 200), [y0, y1] = span(ys, fy / 200);
  const px = (x) => box.left + (fx * x - x0) / (x1 - x0) * (box.right - box.left);
  const py = (y) => box.bottom - (fy * y - y0) / (y1 - y0) * (box.bottom - box.top);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
  for (const t of ticks(x0, x1, width / 90)) {
    svg.append(make("line", { class: "grid", x1: px(t / fx), x2: px(t / fx), y1: box.top, y2: box.bottom }),
      make("text", { x: px(t / fx), y: box.bottom + 16, "text-anchor": "middle" }, String(t)));
  }
  for (const t of ticks(y0, y1, height / 60)) {
    svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: py(t / fy), y2: py(t / fy) }),
      make("text", { x: box.left - 6, y: py(t / fy) + 4, "text-anchor": "end" }, String(t)));
  }
  svg.append(make("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    make("line", { class: "axis", x1: box.left, x2: box.left, y1: box.top, y2: box.bottom }),
    make("text", { class: "title", x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" },
      axisName(state.x)),
    make("text", { class: "title", transform: `translate(12 ${(box.top + box.bottom) / 2}) rotate(-90)`,
      "text-anchor": "middle" }, axisName(state.y)));

  const visible = new Set(placed.map((run) => run.group));
  const centre = (group) => [mean(values(group, state.x)), mean(values(group, state.y))];
  for (const curve of curves) {
    const members = curve.groups.filter((index) => visible.has(index)).map((index) => groups[index]);
    if (!state.curves[curve.dial] || members.length < 2) continue;
    const shades = new Set(members.map((group) => colour(runs[group.runs[0]])));
    svg.append(make("polyline", { class: curve.dial === "alpha" ? "curve" : "curve dashed", stroke: shades.size > 1 ? "#8a939d" : [...shades][0],
      points: members.map(centre).map(([x, y]) => `${px(x)},${py(y)}`).join(" ") }));
  }
  const held = points[focus];
  points = [];
  const put = (kind, run, x, y, size) => {
    points.push({ run, kind, x: px(x), y: py(y), value: [x, y] });
    return make("path", { class: kind, d: symbol(shape(run), size), fill: colour(run), "data-run": run.index,
      transform: `translate(${px(x).toFixed(1)} ${py(y).toFixed(1)})` });
  };
  const averaged = new Set();
  const last = (a, b) => (a.method === "zeroshot") - (b.method === "zeroshot");  // the zero-shot star on top
  for (const run of placed.sort(last)) {
    const many = state.mean && !run.single && groupOf(run).runs.length > 1;
    const x = value(run, state.x);
    if (many) averaged.add(run.group);
    const size = run.method === "zeroshot" ? 10 : many ? 4 : placed.length > 250 ? 5 : 6.5;
    svg.append(put(run.reference ? "reference" : many ? "run faint" : "run", run, x, value(run, state.y), size));
  }
  for (const run of [...averaged].map((index) => runs[groups[index].runs[0]]).sort(last)) {
    const group = groupOf(run), [x, y] = centre(group);
    const dx = deviation(values(group, state.x)), dy = deviation(values(group, state.y)), stroke = colour(run);
    if (dx !== null && dy !== null) svg.append(
      make("line", { class: "error", stroke, x1: px(x - dx), x2: px(x + dx), y1: py(y), y2: py(y) }),
      make("line", { class: "error", stroke, x1: px(x), x2: px(x), y1: py(y - dy), y2: py(y + dy) }));
    svg.append(put("average", run, x, y, run.method === "zeroshot" ? 10 : averaged.size > 60 ? 5.5 : 7));
  }
  const own = (point) => point.kind === "average" && point.run.group === runs[state.run].group;
  const current = points.find(own) ?? points.find((point) => point.run.index === state.run);
  if (current) svg.append(make("path", { class: "ring", d: symbol("circle", 11),
    transform: `translate(${current.x} ${current.y})` }));
  $("plot").replaceChildren(svg);
  points.sort((a, b) => a.x - b.x);
  focus = points.findIndex((point) => point.run === held?.run && point.kind === held.kind);
  drawLegend(placed, colour, shape);
  const left = all.length - placed.length;
  $("scatter-note").textContent = (averaged.size ? "Large marks are means over seeds with standard deviations. " : "")
    + (left ? `${left} runs lack one of the two accuracies and are not drawn.` : "");
}
function drawLegend(placed, colour, shape) {
  const entries = new Map();
  for (const run of placed) {
    const [c, m] = [column(state.colour, run), column(state.marker, run)];
    const named = (key, kind) => typeof kind === "number" ? `${COLUMNS[key][0]} ${kind}` : kind;
    const text = [...new Set([named(state.colour, c), named(state.marker, m)].filter((name) => name !== "none"))]
      .join(", ") || "none";
    if (!entries.has(text)) entries.set(text, [shape(run), colour(run)]);
  }
  const texts = [...entries.keys()].sort(order);
  $("legend").replaceChildren(...texts.slice(0, 40).map((text) => {
    const [form, fill] = entries.get(text);
    const mark = make("path", { d: symbol(form, 6), fill });
    const icon = make("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, mark);
    return make("span", {}, icon, text);
  }), ...(texts.length > 40 ? [`… ${texts.length - 40} more`] : []));
}
function showTip(point) {
  const { run, kind, value: [x, y] } = point, group = groupOf(run), tip = $("tip");
  const title = kind === "average" ? `${group.label}: mean of ${observations(group)}` : run.name;
  const lines = [kind === "average" ? describe({ ...run, seed: null }) : describe(run) || run.system,
    `${axis(state.x)[1]} ${written(state.x, x)} · ${axis(state.y)[1]} ${written(state.y, y)}`];
  tip.replaceChildren(make("b", {}, ...breakable(title)),
    ...lines.filter(Boolean).map((line) => make("div", {}, line)));
  tip.hidden = false;
  const frame = $("plot").getBoundingClientRect(), size = tip.getBoundingClientRect();
  const left = frame.left + point.x + 14, top = frame.top + point.y - size.height - 12;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - size.width - 6))}px`;
  tip.style.top = `${top < 4 ? frame.top + point.y + 16 : top}px`;
}
function nearest(event) {
  const frame = $("plot").getBoundingClientRect(), x = event.clientX - frame.left, y = event.clientY - frame.top;
  let best = null, least = 18 ** 2;
  for (const point of points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2 - (point.kind === "run faint" ? 0 : 4);
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}
const hideTip = () => { $("tip").hidden = true; };
$("plot").addEventListener("pointermove", (event) => {
  const point = nearest(event);
  if (point) showTip(point);
  else hideTip();
});
$("plot").addEventListener("pointerleave", hideTip);
$("plot").addEventListener("blur", hideTip);
$("plot").addEventListener("click", (event) => {
  const point = nearest(event);
  if (!point) return hideTip();
  focus = points.indexOf(point);
  select(point.run.index);
  showTip(point);  // a finger that taps has left by now, which hid it
});
addEventListener("scroll", hideTip, { passive: true });
$("plot").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step && points.length) {
    focus = focus < 0 ? (step > 0 ? 0 : points.length - 1) : (focus + step + points.length) % points.length;
    showTip(points[focus]);
  } else if (event.key === "Enter" && focus >= 0) select(points[focus].run.index);
  else if (event.key === "Escape") hideTip();
  else return;
  event.preventDefault();
});
