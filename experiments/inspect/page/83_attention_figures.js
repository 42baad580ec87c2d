// Figures of the lesson: maps, tables and plots out of one attention and mode.

// Values of both matrices where neither is hidden.
function bothVisible(a, b) {
  const list = [];
  a.values.forEach((x, n) => {
    const y = b.values[n];
    if (x !== null && y !== null && y !== undefined) list.push([x, y]);
  });
  return list;
}

function rmsOf(numbers) {
  return numbers.length ? Math.sqrt(numbers.reduce((sum, x) => sum + x * x, 0) / numbers.length) :
                          null;
}

function differenceRms(a, b) {
  return a && b ? rmsOf(bothVisible(a, b).map(([x, y]) => y - x)) : null;
}

function mapOf(attention, mode, id, title, scale, matrix = mode[id]) {
  if (!matrix?.values) return null;
  return heatMap(matrix, {
    id,
    title,
    scale,
    rowNames: attention.query_tokens ?? [],
    columnNames: attention.key_tokens ?? []
  });
}

function drawTable(a) {
  const d = a.draw ?? {}, degrees = d.degrees ?? [];
  return make(
      "div", {class: "side"},
      make(
          "table", {class: "facts"}, row("draw method", a.draws ?? "?"),
          row("features D", numberSpan(a.features ?? null, whole(a.features))),
          row("projections P", numberSpan(d.projections ?? null, whole(d.projections ?? 0)),
              make("div", {class: "quiet"}, "columns of ω, the sum of the degrees")),
          row("degree 0", numberSpan(d.constant ?? null),
              make(
                  "div", {class: "quiet"},
                  "what all features of degree 0 add to every kernel value")),
          row("degree 1, exact", d.linear ? numberSpan(d.linear) : "no",
              make(
                  "div", {class: "quiet"},
                  d.linear ? "times q·k: the linear term, without noise" :
                             "the linear term is left to features"))),
      make(
          "table", {class: "values", id: "draw-degrees"},
          make(
              "tr", null, make("th", {scope: "col"}, "degree"),
              make("th", {scope: "col"}, "features"),
              make("th", {scope: "col"}, "weight w of each")),
          degrees.map(
              (g) => make(
                  "tr", null, make("td", null, String(g.degree)),
                  make("td", null, numberSpan(g.features, whole(g.features))),
                  make("td", null, numberSpan(g.weight))))));
}

function scatter(m) {
  if (!m.logits) return null;
  const dots = (matrix) => bothVisible(m.logits, matrix).map(([t, y]) => [t, y]);
  const exact = dots(m.exact).sort((p, q) => p[0] - q[0]),
        thin = (list) => list.filter((_, n) => n % Math.ceil(list.length / 1500) === 0);
  const series = [
    {
      name: "estimate, a dot a pair",
      colour: "backward",
      dots: true,
      radius: 1.7,
      points: thin(dots(m.estimate))
    },
    {name: "exact", colour: "forward", dots: true, radius: 1.3, points: thin(exact)}
  ];
  return make(
      "figure", {class: "chart"},
      make("figcaption", null, make("strong", null, "kernel against t")), plot(series, {
        width: 340,
        height: 240,
        xName: "t",
        yName: "K",
        label: "Kernel and its estimate against t"
      }),
      plotKey(series));
}

function denominatorPlot(m) {
  const exact = (m.exact_denominators ?? []).map((y, i) => [i, y]),
        estimated = (m.estimated_denominators ?? []).map((y, i) => [i, y]);
  const spread = m.redraw?.denominator_deviation ?? [];
  const band = exact.filter(([i, y]) => y !== null && Number.isFinite(spread[i]))
                   .map(([i, y]) => [i, y - spread[i], y + spread[i]]);
  const series = [
    {
      name: "exact (band: ± deviation of a draw)",
      colour: "forward",
      points: exact,
      band: band.length ? band : null
    },
    {name: "this draw", colour: "backward", points: estimated}
  ];
  return make(
      "figure", {class: "chart", id: null, "data-chart": "denominators"},
      make("figcaption", null, make("strong", null, "denominators by query")), plot(series, {
        width: 340,
        height: 240,
        xName: "query i",
        yName: "sum of K over the keys",
        label: "Denominators by query, exact and of this draw"
      }),
      plotKey(series));
}

function degreeRows(a, m) {
  const features = new Map((a.draw?.degrees ?? []).map((g) => [g.degree, g]));
  return (m.degrees ?? []).map((g) => ({...g, features: features.get(g.degree)?.features}));
}

function degreeTable(a, m) {
  const d = a.draw ?? {},
        one = (x) => make("td", null, x === null || x === undefined ? "–" : numberSpan(x));
  const featuresOf = (g) =>
      (g.features !== undefined       ? numberSpan(g.features, whole(g.features)) :
           g.degree === 0             ? "constant" :
           g.degree === 1 && d.linear ? "exact" :
                                        numberSpan(0));
  return make(
      "table", {class: "values degrees"},
      make(
          "tr", null,
          ["degree", "features", "exact", "estimate", "error", "deviation"].map(
              (name) => make("th", {scope: "col"}, name))),
      degreeRows(a, m).map(
          (g) => make(
              "tr", null, make("td", null, String(g.degree)), make("td", null, featuresOf(g)),
              one(g.exact_rms), one(g.estimate_rms), one(g.error_rms), one(g.deviation))));
}

// Bars on a log scale, four a degree; the axis starts at the decade of the smallest.
function degreeBars(m) {
  const names = [
    ["exact_rms", "exact", "forward"], ["estimate_rms", "estimate", "backward"],
    ["error_rms", "error of this draw", "third"], ["deviation", "error over the redraws", "fourth"]
  ];
  const rows = m.degrees ?? [],
        all = rows.flatMap((g) => names.map(([name]) => g[name]))
                  .filter((x) => x > 0 && Number.isFinite(x));
  if (all.length === 0) return null;
  const high = Math.max(...all),
        low = 10 ** Math.floor(Math.log10(Math.max(Math.min(...all), high * 1e-9)));
  const width = 420, height = 220, x0 = 50, inner = width - x0 - 8, floor = height - 34,
        group = inner / rows.length, bar = Math.min(14, (group - 4) / 4);
  const py = (v) =>
      8 + (floor - 8) * (1 - (Math.log(v) - Math.log(low)) / (Math.log(high) - Math.log(low) || 1));
  const chart = makeSvg("svg", {
    class: "plot",
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": "What each degree adds, and its errors, log scale"
  });
  chart.style.maxWidth = "560px";
  for (const y of ticksOf(low, high, true))
    chart.append(
        makeSvg("line", {class: "grid", x1: x0, x2: width - 8, y1: py(y), y2: py(y)}),
        makeSvg("text", {x: x0 - 4, y: py(y) + 3.5, "text-anchor": "end"}, tickText(y)));
  rows.forEach((g, n) => {
    const middle = x0 + group * (n + 0.5);
    names.forEach(([name, text, colour], k) => {
      const v = g[name];
      if (!(v > 0) || !Number.isFinite(v)) return;
      const top = Math.min(py(v), floor - 1);
      chart.append(makeSvg(
          "rect", {
            class: colour,
            x: middle + (k - 2) * bar,
            y: top,
            width: Math.max(1, bar - 1),
            height: floor - top
          },
          makeSvg("title", null, `degree ${g.degree}, ${text}: ${digits(v)}`)));
    });
    chart.append(
        makeSvg("text", {x: middle, y: floor + 13, "text-anchor": "middle"}, String(g.degree)));
  });
  chart.append(
      makeSvg("line", {class: "axis", x1: x0, x2: width - 8, y1: floor, y2: floor}),
      makeSvg(
          "text", {x: x0 + inner / 2, y: height - 4, "text-anchor": "middle"},
          "degree   (up: rms over visible pairs, log scale)"));
  return make(
      "figure", {class: "chart wide"}, chart,
      plotKey(names.map(([, name, colour]) => ({name, colour}))));
}

function redrawTable(a, m) {
  const r = m.redraw, one = differenceRms(m.exact, m.estimate),
        mean = differenceRms(m.exact, r.mean);
  const spread = rmsOf((r.deviation?.values ?? []).filter((x) => x !== null)),
        many = a.redraws ?? 0;
  const number = (x) => (x === null ? "–" : numberSpan(x)),
        pairsMany = (m.exact_denominators ?? []).length * many;
  return make(
      "table", {class: "facts wide"},
      row("rms of one draw's error", number(one),
          make("div", {class: "quiet"}, "the draw of the maps above")),
      row("rms of the deviation", number(spread),
          make("div", {class: "quiet"}, "what to expect of one draw's error")),
      row("rms of the mean's error", number(mean),
          make("div", {class: "quiet"}, `mean of ${whole(many)} draws`)),
      row("deviation / √redraws",
          number(spread === null || !many ? null : spread / Math.sqrt(many)),
          make("div", {class: "quiet"}, "what chance alone leaves of the mean's error")),
      row("denominators ≤ 0", numberSpan(r.not_positive ?? null, whole(r.not_positive ?? 0)),
          make("div", {class: "quiet"}, `of ${whole(pairsMany)} in all redraws`)));
}

function modeTable(a) {
  const extent = (matrix) => commonScale([matrix]);
  const number = (x) => (x === null || x === undefined ? "–" : numberSpan(x));
  const lines = [
    ["smallest t", (m) => number(extent(m.logits).low)],
    ["largest t", (m) => number(extent(m.logits).high)],
    ["smallest K", (m) => number(extent(m.exact).low)],
    ["largest K", (m) => number(extent(m.exact).high)],
    ["rms of K", (m) => number(rmsOf(m.exact.values.filter((x) => x !== null)))],
    ["rms of this draw's error", (m) => number(differenceRms(m.exact, m.estimate))],
    [
      "rms of the deviation",
      (m) => number(rmsOf((m.redraw?.deviation?.values ?? []).filter((x) => x !== null)))
    ],
    [
      "rms of the weights' error",
      (m) => number(differenceRms(m.exact_weights, m.estimated_weights))
    ],
    ["denominators ≤ 0 in the redraws", (m) => number(m.redraw?.not_positive)],
  ];
  return make(
      "table", {class: "values", id: "mode-table"},
      make(
          "tr", null, make("td"),
          a.modes.map(
              (m) => make(
                  "th", {scope: "col"}, m.name,
                  m.used_by_the_model ? make("div", {class: "quiet"}, "used by the model") :
                                        null))),
      lines.map(
          ([name, of]) => make(
              "tr", null, make("th", {scope: "row"}, name),
              a.modes.map((m) => make("td", null, of(m))))));
}
