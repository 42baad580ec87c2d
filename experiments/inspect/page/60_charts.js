// Histograms, gradient images, curves and scatter plots.

// Bars as SVG; a bar that holds anything is at least a pixel high, so that rare values can be seen.
function histogramChart(histogram, colour, label) {
  const {low, high, counts} = histogram, width = 170, height = 56, foot = 14;
  const most = counts.reduce((a, b) => Math.max(a, b), 0), bar = width / counts.length,
        step = (high - low) / counts.length;
  const chart = makeSvg("svg", {
    class: "histogram",
    viewBox: `0 0 ${width} ${height + foot}`,
    role: "img",
    "data-most": most,
    "aria-label": `Histogram of the ${label}: from ${digits(low)} to ${digits(high)}, fullest bar ${
        whole(most)}`
  });
  counts.forEach((count, i) => {
    const tall = count > 0 ? Math.max(1, (height * count) / Math.max(most, 1)) : 0;
    chart.append(makeSvg(
        "rect", {
          class: colour,
          x: i * bar + 0.4,
          y: height - tall,
          width: bar - 0.8,
          height: tall,
          "data-count": count
        },
        makeSvg(
            "title", null,
            `${digits(low + i * step)} to ${digits(low + (i + 1) * step)}: ${whole(count)}`)));
  });
  chart.append(makeSvg("line", {class: "axis", x1: 0, x2: width, y1: height, y2: height}));
  if (low < 0 && high > 0) {
    const zero = (-low / (high - low)) * width;
    chart.append(makeSvg("line", {class: "zero", x1: zero, x2: zero, y1: 0, y2: height + 3}));
  }
  chart.append(
      makeSvg("text", {x: 0, y: height + 11}, digits(low, 3)),
      makeSvg("text", {x: width, y: height + 11, "text-anchor": "end"}, digits(high, 3)),
      makeSvg("text", {class: "most", x: width, y: 8, "text-anchor": "end"}, "≤ " + whole(most)));
  return chart;
}

// A slice of a value or gradient: a pixel is the entry of largest magnitude of its block. Zero is
// neutral.
function imageOf(image, label) {
  const bytes = Uint8Array.from(atob(image.pixels), (ch) => ch.charCodeAt(0)),
        {rows, columns} = image;
  const canvas = make("canvas", {
    class: "slice",
    width: columns,
    height: rows,
    role: "img",
    "aria-label": `Image of the ${label}, ${rows} by ${columns} blocks, colours from ${
        digits(-image.scale, 3)} to ${digits(image.scale, 3)}`
  });
  const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
  const stops = kDiverging[page.dark ? "dark" : "light"].map(rgbOf), table = [];
  for (let p = -127; p <= 127; ++p) table[p + 127] = rgbOf(colourAt(stops, (p + 127) / 254));
  const bad = rgbOf(kNotFinite), signed = (i) => (bytes[i] << 24) >> 24;
  for (let i = 0; i < rows * columns; ++i)
    pixels.data.set([...(signed(i) === -128 ? bad : table[signed(i) + 127]), 255], 4 * i);
  context.putImageData(pixels, 0, 0);
  const readout = make("div", {class: "readout"}, "\u00a0");
  canvas.addEventListener("pointermove", (event) => {
    const rect = canvas.getBoundingClientRect();
    const c = Math.min(
        columns - 1, Math.max(0, Math.floor(((event.clientX - rect.left) / rect.width) * columns)));
    const r = Math.min(
        rows - 1, Math.max(0, Math.floor(((event.clientY - rect.top) / rect.height) * rows)));
    const [allRows, allColumns] = image.of ?? [rows, columns];
    const range = (at, many, all) => {
      const from = Math.floor((at * all) / many),
            to = Math.max(from, Math.ceil(((at + 1) * all) / many) - 1);
      return from === to ? `${from}` : `${from}–${to}`;
    };
    const p = signed(r * columns + c);
    readout.textContent =
        `row ${range(r, rows, allRows)}, column ${range(c, columns, allColumns)}: ` +
        (p === -128 ? "not finite" : `about ${digits((p / 127) * image.scale, 2)}`);
  });
  canvas.addEventListener("pointerleave", () => (readout.textContent = "\u00a0"));
  const factor = Math.max(1, Math.min(8, Math.floor(340 / columns), Math.floor(240 / rows)));
  canvas.style.width = columns * factor + "px";
  const bar = make("span", {class: "legend-bar"});
  bar.style.background = gradientCss(stops);
  const cut = image.of && (image.of[0] > rows || image.of[1] > columns) ?
      "; a pixel is the largest magnitude of its block" :
      "";
  return make(
      "figure", null, canvas, readout,
      make(
          "figcaption", null,
          make(
              "span", {class: "legend-part"}, digits(-image.scale, 3), bar, digits(image.scale, 3)),
          ` ${label} ${image.slice ?? ""}${image.of ? ", " + image.of.join("×") : ""}${cut}`));
}

// Lines and dots over common axes. A series: {name, colour (a class), points: [[x, y]...], dots,
// band: [[x, low, high]...]}. Points whose y is null or not finite are left out and break the line.
function plot(series, {
  width = 320,
  height = 150,
  xName = "",
  yName = "",
  log = false,
  marks = [],
  label = "",
  pick = null,
  xTicks = null
} = {}) {
  const ok = ([x, y]) => Number.isFinite(x) && y !== null && Number.isFinite(y) && (!log || y > 0);
  const points = series.flatMap(
      (s) =>
          [...s.points.filter(ok),
           ...(s.band ?? []).flatMap(([x, a, b]) => [[x, a], [x, b]]).filter(ok)]);
  if (points.length === 0)
    return make("p", {class: "quiet"}, "Nothing to plot: no finite figures.");
  const extent = (k) =>
      points.reduce(([a, b], p) => [Math.min(a, p[k]), Math.max(b, p[k])], [Infinity, -Infinity]);
  let [left, right] = extent(0), [low, high] = extent(1);
  if (left === right) [left, right] = [left - 1, right + 1];
  if (log)
    [low, high] = low === high ? [low / 2, high * 2] : [low, high];
  else if (low === high)
    [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const inner = {x: 54, y: 8, w: width - 62, h: height - 38};
  const scale = log ? Math.log : (v) => v;
  const px = (x) => inner.x + ((x - left) / (right - left)) * inner.w;
  const py = (y) =>
      inner.y + inner.h - ((scale(y) - scale(low)) / (scale(high) - scale(low))) * inner.h;
  const chart = makeSvg(
      "svg", {class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label});
  chart.style.maxWidth = width * 1.25 + "px";
  for (const [i, y] of ticksOf(low, high, log).entries()) {
    chart.append(
        makeSvg("line", {
          class: "grid",
          x1: inner.x,
          x2: inner.x + inner.w,
          y1: py(y),
          y2: py(y),
          "data-tick": i
        }),
        makeSvg("text", {x: inner.x - 4, y: py(y) + 3.5, "text-anchor": "end"}, tickText(y)));
  }
  for (const x of xTicks ?? ticksOf(left, right, false))
    chart.append(makeSvg(
        "text", {x: px(x), y: inner.y + inner.h + 13, "text-anchor": "middle"}, tickText(x)));
  chart.append(
      makeSvg("line", {
        class: "axis",
        x1: inner.x,
        x2: inner.x + inner.w,
        y1: inner.y + inner.h,
        y2: inner.y + inner.h
      }),
      makeSvg(
          "text", {x: inner.x + inner.w / 2, y: height - 3, "text-anchor": "middle"},
          xName + (yName ? "   (up: " + yName + (log ? ", log scale)" : ")") : "")));
  for (const x of marks)
    chart.append(
        makeSvg("line", {class: "mark", x1: px(x), x2: px(x), y1: inner.y, y2: inner.y + inner.h}));
  for (const s of series) chart.append(...seriesShapes(s, ok, px, py));
  if (pick) {
    chart.classList.add("pick");
    chart.addEventListener("click", (event) => {
      const rect = chart.getBoundingClientRect(),
            x = left +
          (((event.clientX - rect.left) / rect.width) * width - inner.x) / inner.w * (right - left);
      pick(x);
    });
  }
  return chart;
}

function seriesShapes(s, ok, px, py) {
  const shapes = [];
  if (s.band) {
    const band = s.band.filter(([x, a, b]) => ok([x, a]) && ok([x, b]));
    const path = [...band.map(([x, a]) => [x, a]), ...band.reverse().map(([x, , b]) => [x, b])];
    shapes.push(makeSvg(
        "polygon",
        {class: "band " + s.colour, points: path.map(([x, y]) => `${px(x)},${py(y)}`).join(" ")}));
  }
  let line = "", open = false;
  for (const p of s.points) {
    if (!ok(p)) {
      open = false;
      continue;
    }
    if (s.dots)
      shapes.push(makeSvg(
          "circle", {class: "dot " + s.colour, cx: px(p[0]), cy: py(p[1]), r: s.radius ?? 2},
          p[2] === undefined ? null : makeSvg("title", null, p[2])));
    else
      line += `${open ? "L" : "M"}${px(p[0]).toFixed(2)} ${py(p[1]).toFixed(2)}`;
    open = true;
  }
  if (line) shapes.push(makeSvg("path", {class: "curve " + s.colour, d: line}));
  if (!s.dots && s.points.length <= 60)
    shapes.push(...s.points.filter(ok).map(
        (p) => makeSvg(
            "circle", {class: "dot " + s.colour, cx: px(p[0]), cy: py(p[1]), r: 2.2},
            makeSvg("title", null, `${s.name} ${p[0]}: ${digits(p[1])}`))));
  return shapes;
}

function ticksOf(low, high, log) {
  if (log) {
    const decades = Math.log10(high / low);
    if (decades >= 1) {
      const every = Math.ceil(decades / 5), ticks = [];
      for (let e = Math.ceil(Math.log10(low) - 1e-9); e <= Math.log10(high) + 1e-9; e += every)
        ticks.push(10 ** e);
      return ticks;
    }
    return [low, high];
  }
  const raw = (high - low) / 4, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= raw) ?? raw, ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; ++k)
    ticks.push(k * step);
  return ticks;
}

function tickText(x) {
  if (Math.abs(x) < 1e-12) return "0";
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3 ? x.toExponential(1).replace(".0e", "e").replace("+", "") :
                                      String(Number(x.toPrecision(4)));
}

function plotKey(series) {
  return make(
      "div", {class: "plot-key"},
      series.map(
          (s) => make(
              "span", {class: "legend-part"}, make("span", {class: "swatch " + s.colour}),
              s.name)));
}
