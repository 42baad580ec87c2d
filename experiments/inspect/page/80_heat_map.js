// A matrix of queries and keys as colours. All maps of the tab share one cursor: a pair that is
// hovered, or reached with the arrow keys, is marked in each, and 84_attention_tab.js writes down
// its numbers.

const cursor = {
  i: -1,
  j: -1,
  maps: [],
  move: null
};

// scale: {low, high, diverging}. A null entry is hidden by the mask or not finite, and is hatched.
function heatMap(matrix, {title, scale, rowNames, columnNames, id}) {
  const {rows, columns} = matrix;
  const canvas = make("canvas", {
    class: "heat",
    tabindex: 0,
    role: "application",
    "data-map": id,
    "aria-label": `${title}: ${rows} queries by ${columns} keys. Arrow keys move over the pairs.`
  });
  const stops =
      (scale.diverging ? kDiverging[page.dark ? "dark" : "light"] : kSequential).map(rgbOf);
  const bar = make("span", {class: "legend-bar"});
  bar.style.background = gradientCss(stops);
  const value = make("span", {class: "map-value number"}, "\u00a0");
  const map =
      {matrix, canvas, scale, stops, rowNames, columnNames, value, cell: 1, left: 0, top: 0};
  canvas.addEventListener("pointermove", (event) => {
    const rect = canvas.getBoundingClientRect();
    const j = Math.floor((event.clientX - rect.left - map.left) / map.cell),
          i = Math.floor((event.clientY - rect.top - map.top) / map.cell);
    if (i >= 0 && j >= 0 && i < rows && j < columns) moveCursor(i, j);
  });
  canvas.addEventListener("focus", () => cursor.i < 0 && moveCursor(0, 0));
  canvas.addEventListener("keydown", (event) => {
    const move = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      Home: [0, -Infinity],
      End: [0, Infinity]
    }[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const within = (x, many) => Math.min(many - 1, Math.max(0, x));
    moveCursor(within(cursor.i + move[0], rows), within(cursor.j + move[1], columns));
  });
  cursor.maps.push(map);
  drawMap(map);
  return make(
      "figure", {class: "map"}, make("figcaption", null, make("strong", null, title)), canvas,
      make(
          "div", {class: "map-foot"},
          make("span", {class: "legend-part"}, digits(scale.low, 3), bar, digits(scale.high, 3)),
          value));
}

function moveCursor(i, j) {
  if (cursor.i === i && cursor.j === j) return;
  Object.assign(cursor, {i, j});
  for (const map of cursor.maps) drawMap(map);
  cursor.move?.();
}

function drawMap(map) {
  const {matrix: {rows, columns, values}, canvas, scale, stops} = map, c = canvas.getContext("2d");
  const ratio = window.devicePixelRatio || 1, most = 9;
  const cell = (map.cell = Math.max(3, Math.min(24, Math.floor(300 / Math.max(rows, columns)))));
  c.font = `11px ${kFont}`;
  const widest = (names) =>
      Math.min(
          78,
          names.reduce(
              (w, name) => Math.max(w, c.measureText(shorten(String(name), 40)).width), 0)) +
      6;
  map.left = widest(map.rowNames);
  map.top = widest(map.columnNames);
  const width = map.left + columns * cell + 2, height = map.top + rows * cell + 2;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink"),
        dim = style.getPropertyValue("--dim");
  const accent = style.getPropertyValue("--accent"), hatch = style.getPropertyValue("--frame-line");
  for (let i = 0; i < rows; ++i)
    for (let j = 0; j < columns; ++j) {
      const v = values[i * columns + j], x = map.left + j * cell, y = map.top + i * cell;
      if (v === null || v === undefined) {
        c.strokeStyle = hatch;
        c.lineWidth = 1;
        c.beginPath();
        c.moveTo(x + 1, y + cell - 1);
        c.lineTo(x + cell - 1, y + 1);
        c.stroke();
        continue;
      }
      c.fillStyle = colourAt(
          stops,
          scale.high > scale.low ?
              Math.min(1, Math.max(0, (v - scale.low) / (scale.high - scale.low))) :
              0.5);
      c.fillRect(x, y, cell - (cell > 6 ? 1 : 0), cell - (cell > 6 ? 1 : 0));
    }
  const every = Math.max(1, Math.ceil(most / cell));
  c.font = `${Math.min(11, Math.max(9, cell))}px ${kFont}`;
  c.textBaseline = "middle";
  const label = (name, at, active) => {
    c.fillStyle = active ? accent : at % every === 0 ? ink : dim;
    return fitText(c, String(name), 78);
  };
  for (let i = 0; i < rows; ++i) {
    if (i % every && i !== cursor.i) continue;
    c.textAlign = "right";
    c.fillText(
        label(map.rowNames[i] ?? i, i, i === cursor.i), map.left - 4, map.top + (i + 0.5) * cell);
  }
  for (let j = 0; j < columns; ++j) {
    if (j % every && j !== cursor.j) continue;
    c.save();
    c.translate(map.left + (j + 0.5) * cell, map.top - 4);
    c.rotate(-Math.PI / 2);
    c.textAlign = "left";
    c.fillText(label(map.columnNames[j] ?? j, j, j === cursor.j), 0, 0);
    c.restore();
  }
  const at = cursor.i >= 0 && cursor.i < rows && cursor.j < columns;
  if (at) {
    c.strokeStyle = accent;
    c.lineWidth = 2;
    c.strokeRect(map.left + cursor.j * cell - 1, map.top + cursor.i * cell - 1, cell + 1, cell + 1);
  }
  const v = at ? values[cursor.i * columns + cursor.j] : undefined;
  map.value.textContent = !at ? "\u00a0" : v === null ? "hidden or not finite" : digits(v);
  map.value.title = v === null || v === undefined ? "" : String(v);
}

// One scale for matrices that are compared. Diverging ones are even around 0.
function commonScale(matrices, diverging = false) {
  let low = Infinity, high = -Infinity;
  for (const matrix of matrices)
    for (const v of matrix?.values ?? [])
      if (v !== null) {
        low = Math.min(low, v);
        high = Math.max(high, v);
      }
  if (low > high) low = high = 0;
  if (diverging) {
    high = Math.max(Math.abs(low), Math.abs(high));
    low = -high;
  }
  return {low, high, diverging};
}
