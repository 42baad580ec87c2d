// The size of a frame. A long chain of layers is folded into rows, which read like lines of text: a
// wire from the end of a row turns around and runs back to the start of the next one in a lane of
// its own.

const kHeader = 26, kPadding = 14, kLabelGap = 92, kPlainGap = 44;
const kLane = 6, kTurn = 12;            // between lanes, and between lanes and boxes
const kFoldWidth = 1500, kShape = 1.7;  // narrower frames stay one row; width / height to aim at

function sizeFrame(frame, columns) {
  const parts = columns.map(measureColumn);
  for (const {vertices} of columns)
    for (const v of vertices)
      v.crossing = new Set(v.right.map((link) => link.b.column)).has(v.column + 1);
  const rows = chooseRows(parts, columns);
  let y = kHeader, width = 120;
  rows.forEach((row, r) => {
    const lanes = r > 0 ? rows[r - 1].lanes : 0;
    let x = r > 0 ? lanes * kLane + kTurn + parts[row.from].gap : 0;
    row.left = r > 0 ? kTurn : 0;
    row.y = y;
    for (let c = row.from; c <= row.to; ++c) {
      if (c > row.from) x += parts[c].gap;
      Object.assign(columns[c], {x, width: parts[c].width, row});
      x += parts[c].width;
      for (const v of columns[c].vertices) v.y += y - row.top;
    }
    row.right = x;
    y += row.bottom - row.top;
    row.gutter = y + kTurn;
    if (r + 1 < rows.length) y += 2 * kTurn + row.lanes * kLane;
    width = Math.max(width, x + (r + 1 < rows.length ? row.lanes * kLane + 2 * kTurn : 0));
  });
  frame.columns = columns;
  frame.folded = rows.length > 1;
  frame.w = width;
  frame.h = y + kPadding;
  columns[columns.length - 1].x = width;
  for (const {vertices} of columns)
    for (const v of vertices) {
      if (v.enters !== undefined) frame.inPorts.set(v.enters, v.y);
      if (v.leaves !== undefined) frame.outPorts.set(v.leaves, v.y);
    }
}

function measureColumn({vertices}, c) {
  const boxed = vertices.some((v) => v.node && v.node.kind !== "frame" && v.left.length);
  const linked = vertices.some((v) => v.left.length);
  return {
    gap: c === 0 ? 0 :
        boxed    ? kLabelGap :
        linked   ? kPlainGap :
                   kPadding,
    width: vertices.reduce((most, v) => Math.max(most, v.node ? v.node.w : 0), 0),
    top: vertices.reduce((least, v) => Math.min(least, v.y), Infinity),
    bottom: vertices.reduce((most, v) => Math.max(most, v.y + v.h), -Infinity),
  };
}

// Rows {from, to, top, bottom, lanes} of columns. More rows only while they bring the shape nearer
// to kShape.
function chooseRows(parts, columns) {
  const total = parts.reduce((sum, p) => sum + p.gap + p.width, 0);
  let best = rowsOf(parts, columns, Infinity);
  if (total < kFoldWidth) return best;
  const miss = (rows) => {
    const wide = rows.reduce((most, row) => Math.max(most, row.width), 0);
    const high =
        rows.reduce((sum, row) => sum + row.bottom - row.top + 2 * kTurn + row.lanes * kLane, 0);
    return Math.abs(Math.log(wide / high / kShape));
  };
  for (let many = 2; many <= 40 && total / many > kFoldWidth / 2; ++many) {
    const rows = rowsOf(parts, columns, total / many);
    if (miss(rows) < miss(best)) best = rows;
  }
  return best;
}

// The columns of the border stay with their neighbours: no row begins before column 2 or after the
// last but one.
function rowsOf(parts, columns, width) {
  const rows = [];
  let row = null;
  parts.forEach((part, c) => {
    const full =
        row && c > 1 && c < parts.length - 1 && row.width + (part.gap + part.width) / 2 > width;
    if (!row || full)
      rows.push(row = {from: c, to: c, top: Infinity, bottom: -Infinity, width: 0, lanes: 0});
    row.to = c;
    row.width += part.gap + part.width;
    row.top = Math.min(row.top, part.top);
    row.bottom = Math.max(row.bottom, part.bottom);
  });
  for (const one of rows) {
    if (one.top === Infinity) one.top = one.bottom = 0;
    one.lanes = columns[one.to].vertices.filter((v) => v.crossing).length;
  }
  return rows;
}
