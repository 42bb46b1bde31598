// Bars per shift, heat maps, table, gallery and config diff.

function drawBars() {
  const run = runs[state.run], own = state.mean && !run.single ? groupOf(run) : { label: run.name, runs: [run.index] };
  const local = panel().groups.map((index) => groups[index]);
  const largest = (method) => local.filter((group) => runs[group.runs[0]].method === method)
    .sort((a, b) => b.runs.length - a.runs.length)[0];
  const others = [[largest("zeroshot"), "#9aa4af"], [largest("finetune"), "#E69F00"]];
  const compared = [[own, "#0072B2"], ...others.filter(([group]) => group && group !== groupOf(run))];
  $("shifts-note").replaceChildren(...compared.map(([group, colour]) =>
    make("span", {}, make("i", { style: `background:${colour}` }), make("span", {}, ...breakable(group.label)))));
  const rows = metrics().filter(([key]) => key !== "holdout"), width = Math.max($("bars").clientWidth, 280);
  const bar = 15, block = bar * compared.length + 12, left = 104, right = width - 74;
  const svg = make("svg", { viewBox: `0 0 ${width} ${rows.length * block}`, height: rows.length * block, role: "img",
    "aria-label": `Accuracies per set: ${own.label}` });
  rows.forEach(([key, name], row) => {
    svg.append(make("text", { class: key === "id" || key === "ood_avg" ? "title" : "", x: left - 8,
      y: row * block + block / 2, "text-anchor": "end" }, name));
    compared.forEach(([group, fill], k) => {
      const list = values(group, key), centre = mean(list), spread = deviation(list), y = row * block + k * bar + 3;
      if (centre === null) return;
      const end = left + centre * (right - left), half = (spread ?? 0) * (right - left);
      svg.append(make("rect", { x: left, y, width: Math.max(end - left, 1), height: bar - 3, fill, rx: 1.5 }),
        make("text", { class: "value", x: end + half + 6, y: y + bar - 5 },
          percent(centre) + (spread === null ? "" : ` ± ${percent(spread)}`)));
      if (half) svg.append(make("line", { class: "error", stroke: "#1b1f24", x1: end - half, x2: end + half,
        y1: y + bar / 2 - 1.5, y2: y + bar / 2 - 1.5 }));
    });
  });
  $("bars").replaceChildren(svg);
}

function facets() {
  const found = new Map();
  for (const run of panelRuns()) {
    const dial = run.threshold !== null ? "threshold" : run.rate !== null ? "rate" : null;
    if (!dial || run.beta === null) continue;
    const name = [...(run.method === "kd" ? ["KD"] : []), column("kind", run), column("fillkind", run)].join(", ");
    if (!found.has(name)) found.set(name, { name, dial, runs: [] });
    found.get(name).runs.push(run);
  }
  const cells = ({ runs: own, dial }) => new Set(own.map((run) => `${run[dial]} ${run.beta}`)).size;
  return [...found.values()].filter((facet) => cells(facet) > 1)
    .sort((a, b) => cells(b) - cells(a) || order(a.name, b.name));
}
function drawMaps() {
  const list = facets(), facet = list[Math.min(state.facet, list.length - 1)];
  $("grid").hidden = !facet;
  if (!facet) return;
  fill("facet", list.map((f, k) => [k, f.name]), state.facet);
  const rows = distinct(facet.runs.map((run) => run[facet.dial])).reverse();
  const columns = distinct(facet.runs.map((run) => run.beta));
  $("grid-note").textContent = `${facet.dial} (down) × β (across), mean over the seeds in each cell, in %; `
    + "each map has a scale of its own.";
  const cell = (row, col) => facet.runs.filter((run) => run[facet.dial] === row && run.beta === col);
  $("maps").replaceChildren(...[["id", `ID ${panel().id_label}`], ["ood_avg", "OOD avg"]].map(([metric, title]) => {
    const at = (row, col) => mean(values({ runs: cell(row, col).map((run) => run.index) }, metric));
    const every = known(rows.flatMap((row) => columns.map((col) => at(row, col))));
    const low = Math.min(...every), high = Math.max(...every);
    const head = make("tr", {}, make("th", {}, `${facet.dial === "rate" ? "rate" : "t"} \\ β`),
      ...columns.map((col) => make("th", { scope: "col" }, String(col))));
    const body = rows.map((row) => make("tr", {}, make("th", { scope: "row" }, String(row)), ...columns.map((col) => {
      const centre = at(row, col);
      if (centre === null) return make("td", {}, "–");
      const t = high > low ? (centre - low) / (high - low) : 0.5, members = cell(row, col);
      return make("td", {}, make("button", { style: `background:${cividis(t)};color:${t > 0.47 ? "#000" : "#fff"}`,
        title: `${facet.dial} ${row}, β ${col}: ${percent(centre)} (${members.length} runs)`,
        onclick: () => select(members[0].index) }, percent(centre)));
    })));
    return make("figure", {}, make("figcaption", {}, title),
      make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }));
}

function tableRows() {
  const list = shown();
  if (!state.mean) return list.map((run) => ({ run, group: { runs: [run.index], label: run.name } }));
  const kept = new Set(list.map((run) => run.index));
  return [...new Set(list.map((run) => run.single ? run.index - 1e9 : run.group))].map((key) => {
    const members = key < 0 ? [key + 1e9] : groups[key].runs.filter((index) => kept.has(index));
    const run = runs[members[0]];
    return { run, group: { runs: members, label: key < 0 ? run.name : groups[key].label } };
  });
}
function drawTable() {
  const rows = tableRows();
  const settings = ["mask", "fill", "threshold", "rate", "beta", "alpha", "temperature"]
    .filter((key) => rows.some(({ run }) => known([run[key]]).length));
  const columns = [["name", state.mean ? "system" : "run", (r) => r.group.label],
    ...[...metrics(), ...axes().filter(([key]) => key.startsWith("retention"))]
      .map(([key, name]) => [key, name, (r) => mean(values(r.group, key)), true]),
    state.mean ? ["seeds", "runs", (r) => r.group.runs.filter((index) => !runs[index].reference).length || null] : ["seed", "seed", (r) => r.run.seed],
    ...settings.map((key) => [key, COLUMNS[key][0], (r) => r.run[key]])];
  const sorted = columns.find(([key]) => key === state.sort) ?? columns[0];
  rows.sort((a, b) => {
    const [u, v] = [sorted[2](a) ?? null, sorted[2](b) ?? null];
    if (u === null || v === null) return (u === null) - (v === null);
    return state.descending ? order(v, u) : order(u, v);
  });
  // On paper a system's name tells its settings; their columns are for sorting.
  const place = (key) => state.mean && settings.includes(key) ? "screen" : null;
  const head = columns.map(([key, name]) => make("th", { scope: "col", class: place(key),
    "aria-sort": key !== sorted[0] ? null : state.descending ? "descending" : "ascending" },
  make("button", { type: "button", "data-key": key, onclick: () => {
    state.descending = state.sort === key ? !state.descending : metrics().some(([metric]) => metric === key);
    state.sort = key;
    drawTable();
  } }, name)));
  const body = rows.map((row) => make("tr", { class: row.group.runs.includes(state.run) ? "selected" : null },
    ...columns.map(([key, , get, accuracy], k) => {
      const pick = () => select(row.run.index);
      if (k === 0) return make("td", {}, make("button", { type: "button", "data-key": row.run.index, onclick: pick },
        ...breakable(get(row))));
      if (!accuracy) return make("td", { class: place(key) }, String(get(row) ?? "–"));
      const spread = deviation(values(row.group, key));
      const extra = spread === null ? [] : [make("small", {}, ` ± ${percent(spread)}`)];
      return make("td", {}, percent(get(row)), ...extra);
    })));
  const held = document.activeElement?.closest("#table button")?.dataset.key;
  $("table").replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  if (held) document.querySelector(`#table button[data-key="${held}"]`)?.focus({ preventScroll: true });
}

function drawGallery() {
  const withPictures = panelRuns().filter((run) => run.gallery.length);
  $("pictures").hidden = !withPictures.length;
  if (!withPictures.length) return;
  const run = runs[state.run].gallery.length ? runs[state.run]
    : withPictures.find((other) => other.group === runs[state.run].group) ?? withPictures[0];
  fill("gallery-run", withPictures.map((other) => [other.index, longName(other, false)]), run.index);
  $("gallery").replaceChildren(...run.gallery.map(([title, image]) => {
    const enlarge = make("button", { type: "button", "aria-pressed": "false", title: "Full size and back" },
      make("img", { src: images[image], alt: `${title}, run ${run.name}` }));
    const figure = make("figure", {}, make("figcaption", {}, title), enlarge);
    enlarge.addEventListener("click", () => enlarge.setAttribute("aria-pressed", figure.classList.toggle("large")));
    return figure;
  }));
}

function drawDiff() {
  const real = runs.filter((run) => !run.reference), [a, b] = [runs[$("diff-a").value], runs[$("diff-b").value]];
  $("difference").hidden = real.length < 2;
  if (real.length < 2) return;
  const full = (run) => ({ ...data.config, ...run.config });
  const [left, right] = [full(a), full(b)];
  const keys = distinct([...Object.keys(left), ...Object.keys(right)]);
  const text = (settings, key) => key in settings ? JSON.stringify(settings[key]) : "–";
  const rows = keys.filter((key) => text(left, key) !== text(right, key)).map((key) =>
    make("tr", {}, ...[key, text(left, key), text(right, key)].map((cell) => make("td", {}, ...breakable(cell)))));
  const same = `${keys.length - rows.length} settings are the same`;
  const head = ["setting", longName(a), longName(b)].map((name) => make("th", { scope: "col" }, ...breakable(name)));
  const last = make("td", { colspan: 3 }, make("small", {}, rows.length ? same : `All ${same}`));
  $("diff").replaceChildren(make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...rows, make("tr", {}, last)));
}
