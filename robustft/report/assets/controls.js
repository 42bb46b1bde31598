// Choosing what is shown; the start.

function fill(id, options, chosen) {
  $(id).replaceChildren(...options.map(([key, text]) => make("option", { value: key }, text)));
  if (chosen !== undefined) $(id).value = chosen;
}
function select(index) {
  state.run = index;
  draw(drawScatter, drawBars, drawTable, drawGallery);
  if (!runs[index].reference) { $("diff-a").value = index; drawDiff(); }
}
function draw(...parts) { for (const part of parts) part(); }
function usePanel() {
  const offered = axes(), names = offered.map(([key]) => key), real = panelRuns();
  if (!names.includes(state.x)) state.x = names[0];
  if (!names.includes(state.y)) state.y = names[1] ?? names[0];
  fill("x", offered, state.x);
  fill("y", offered, state.y);
  const varied = Object.entries(COLUMNS).filter(([key]) =>
    key.endsWith("kind") || new Set(real.map((run) => column(key, run))).size > 1);
  for (const [menu, usual] of [["colour", "kind"], ["marker", "fillkind"]]) {
    if (!varied.some(([key]) => key === state[menu])) state[menu] = usual;  // what it was does not vary here
    fill(menu, varied.map(([key, [name]]) => [key, name]), state[menu]);
  }
  // The run the page opens with is chosen on the hold-out, never on a shift.
  const candidates = real.filter((run) => !run.reference);
  const score = (run) => run.single || run.method === "zeroshot" ? -1 : mean(values(groupOf(run), "holdout")) ?? -1;
  const best = candidates.reduce((a, b) => score(b) > score(a) ? b : a, candidates[0] ?? real[0]);
  state.facet = 0;
  state.run = best.index;
  // Any two runs can be compared: first the best with vanilla fine-tuning, where the panel has both.
  const vanilla = candidates.find((run) => run !== best && run.method === "finetune");
  const compared = new Set([best, vanilla, ...candidates, ...runs].filter((run) => run && !run.reference));
  [$("diff-a").value, $("diff-b").value] = [...compared, best].map((run) => run.index);
  draw(drawScatter, drawBars, drawMaps, drawTable, drawGallery, drawDiff);
  for (const link of document.querySelectorAll("nav a")) link.hidden = document.querySelector(link.hash).hidden;
}
function start() {
  $("about").textContent = data.about;
  $("panel-label").hidden = panels.length < 2;
  fill("panel", panels.map((p, k) => [k, p.title]), 0);
  for (const id of ["diff-a", "diff-b"])
    fill(id, runs.filter((run) => !run.reference).map((run) => [run.index, longName(run)]));
  const on = (id, event, change) => $(id).addEventListener(event, () => change($(id)));
  on("panel", "change", (node) => { state.panel = +node.value; usePanel(); });
  for (const key of ["x", "y", "colour", "marker"])
    on(key, "change", (node) => { state[key] = node.value; drawScatter(); });
  on("mean", "change", (node) => { state.mean = node.checked; draw(drawScatter, drawBars, drawTable); });
  $("curves").replaceChildren(...dials.map(([dial, name]) => {
    const box = make("input", { type: "checkbox", id: dial, checked: "",
      onchange: () => { state.curves[dial] = box.checked; drawScatter(); } });
    return make("label", {}, box, ` ${name} curves`);
  }));
  on("filter", "input", (node) => { state.filter = node.value; draw(drawScatter, drawTable); });
  on("facet", "change", (node) => { state.facet = +node.value; drawMaps(); });
  on("gallery-run", "change", (node) => select(+node.value));
  on("diff-a", "change", drawDiff);
  on("diff-b", "change", drawDiff);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;  // a phone's address bar changes the height only
    width = innerWidth;
    draw(drawScatter, drawBars);
  });
  usePanel();
  document.documentElement.dataset.ready = "yes";
}
start();
