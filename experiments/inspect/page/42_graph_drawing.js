// Draws what is visible: frames, wires, the selection's wires, boxes, and numbers on edges when
// there is room.

const kTextScale = 0.45;   // smaller boxes carry no text
const kLabelScale = 0.75;  // smaller edges carry no numbers
const kFont = "system-ui, sans-serif", kDigits = "ui-monospace, monospace";

function drawGraph() {
  const {context: c, view, ratio, width, height, colours, layout} = graph;
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.fillStyle = colours.canvas;
  c.fillRect(0, 0, width, height);
  c.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
  const seen = visibleRect(), selected = selectedNode(), place = selected && placeOfNode(selected);
  const frames = layout.frames.filter((f) => f !== layout.root && overlaps(f, seen));
  for (const frame of frames) drawFrame(c, frame, frame === place);
  drawStrokeSet(c, layout.strokes, seen, colours.line, 1.1);
  if (place && place.kind !== "frame") {
    graph.highlight ??= strokesAt(layout, place);
    drawStrokeSet(c, graph.highlight.incoming, seen, colours.forward, 2.4);
    drawStrokeSet(c, graph.highlight.outgoing, seen, colours.backward, 2.4);
  }
  const boxes = visibleBoxes();
  for (const box of boxes) drawBox(c, box, box === place);
  if (view.scale >= kLabelScale) drawLabels(c, layout.strokes, seen);
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  for (const frame of frames) drawFrameTitle(c, frame, seen, frame === place);
}

function overlaps(r, seen) {
  return r.x < seen.right && r.x + r.w > seen.left && r.y < seen.bottom && r.y + r.h > seen.top;
}

function drawFrame(c, frame, selected) {
  const {colours, view} = graph;
  c.fillStyle = colours.frame;
  c.strokeStyle = selected ? colours.accent : colours["frame-line"];
  c.lineWidth = (selected ? 3 : 1) / Math.min(1, Math.max(view.scale, 0.3));
  if (frame.w * view.scale < 24) {
    c.fillRect(frame.x, frame.y, frame.w, frame.h);
    if (selected) c.strokeRect(frame.x, frame.y, frame.w, frame.h);
    return;
  }
  c.beginPath();
  c.roundRect(frame.x, frame.y, frame.w, frame.h, 8);
  c.fill();
  c.stroke();
}

// Titles have one size on the screen, and stay in sight while their frame is.
function drawFrameTitle(c, frame, seen, selected) {
  const {view, colours, width} = graph;
  const left = Math.max(frame.x * view.scale + view.x, 0),
        right = Math.min((frame.x + frame.w) * view.scale + view.x, width);
  const top = frame.y * view.scale + view.y, room = kHeader * view.scale;
  if (right - left < 46 || room < 9) return;
  const size = Math.min(13, Math.max(9, room * 0.5));
  c.font = `600 ${size}px ${kFont}`;
  c.fillStyle = selected ? colours.accent : colours.ink;
  c.textBaseline = "middle";
  c.textAlign = "left";
  c.fillText(fitText(c, "− " + shortName(frame.node), right - left - 12), left + 7, top + room / 2);
}

function drawStrokeSet(c, strokes, seen, colour, width) {
  const {view} = graph, plain = view.scale < 0.25;
  c.strokeStyle = colour;
  c.lineWidth = width / Math.min(1, Math.max(view.scale, 0.08));
  c.beginPath();
  const backward = [];
  for (const s of strokes) {
    if (s.backward)
      backward.push(s);
    else if (s.turn)
      drawTurn(c, s, seen, plain);
    else if (s.x2 < s.x1)
      drawLoop(c, s);
    else
      drawStroke(c, s, seen, plain);
  }
  c.stroke();
  if (backward.length === 0) return;
  c.setLineDash([6, 4]);
  c.beginPath();
  for (const s of backward) drawLoop(c, s);
  c.stroke();
  c.setLineDash([]);
}

function drawStroke(c, s, seen, plain) {
  if (s.x0 > seen.right || s.x3 < seen.left) return;
  if ((s.y1 < seen.top && s.y2 < seen.top) || (s.y1 > seen.bottom && s.y2 > seen.bottom)) return;
  c.moveTo(s.x0, s.y1);
  if (s.x1 !== s.x0) c.lineTo(s.x1, s.y1);
  if (plain || Math.abs(s.y1 - s.y2) * graph.view.scale < 1) {
    c.lineTo(s.x2, s.y2);
  } else {
    const middle = (s.x1 + s.x2) / 2;
    c.bezierCurveTo(middle, s.y1, middle, s.y2, s.x2, s.y2);
  }
  if (s.x3 !== s.x2) c.lineTo(s.x3, s.y2);
}

// Down behind the end of the row, back below it, and down to the start of the next.
function drawTurn(c, s, seen, plain) {
  const {right, left, y} = s.turn, radius = plain ? 0 : 5;
  if (left > seen.right || right < seen.left || s.y1 > seen.bottom || s.y2 < seen.top) return;
  c.moveTo(s.x0, s.y1);
  c.arcTo(right, s.y1, right, y, radius);
  c.arcTo(right, y, left, y, radius);
  c.arcTo(left, y, left, s.y2, radius);
  c.arcTo(left, s.y2, s.x2, s.y2, radius);
  c.lineTo(s.x3, s.y2);
}

function drawLoop(c, s) {
  const reach = Math.min(160, 60 + Math.abs(s.x1 - s.x2) / 6), dip = s.y1 === s.y2 ? 60 : 0;
  c.moveTo(s.x0, s.y1);
  c.lineTo(s.x1, s.y1);
  c.bezierCurveTo(s.x1 + reach, s.y1 + dip, s.x2 - reach, s.y2 + dip, s.x2, s.y2);
  c.lineTo(s.x3, s.y2);
}

function drawBox(c, box, selected) {
  const {view, colours} = graph, {x, y, w, h, fill, node} = box;
  c.fillStyle = fill;
  if (w * view.scale < 9) {
    c.fillRect(x, y, w, h);
  } else {
    c.beginPath();
    c.roundRect(x, y, w, h, box.kind === "leaf" ? 14 : box.kind === "scope" ? 8 : 4);
    c.fill();
    c.strokeStyle = colours["frame-line"];
    c.lineWidth = 1;
    c.stroke();
    if (box.kind === "scope") {
      c.beginPath();
      c.roundRect(x + 2.5, y + 2.5, w - 5, h - 5, 6);
      c.strokeStyle = inkOn(fill);
      c.globalAlpha = 0.35;
      c.stroke();
      c.globalAlpha = 1;
    }
  }
  if (selected || box === graph.hover) {
    c.strokeStyle = colours.accent;
    c.lineWidth = (selected ? 3.5 : 1.5) / Math.min(1, Math.max(view.scale, 0.08));
    c.strokeRect(x - 2, y - 2, w + 4, h + 4);
  }
  if (view.scale >= kTextScale) drawBoxText(c, box, node);
}

function drawBoxText(c, box, node) {
  const {x, y, w, h, fill} = box, middle = y + h / 2;
  c.fillStyle = inkOn(fill);
  c.textAlign = "center";
  c.textBaseline = "middle";
  const name =
      (node.figures.nonFinite ? "⚠ " : "") + (box.kind === "scope" ? "+ " : "") + shortName(node);
  c.font = `600 12px ${kFont}`;
  if (box.kind === "leaf") {
    c.font = `12px ${kFont}`;
    c.fillText(fitText(c, name, w - 14), x + w / 2, middle);
    return;
  }
  c.fillText(fitText(c, name, w - 14), x + w / 2, middle - 8);
  c.font = `10.5px ${kFont}`;
  const below = box.kind === "scope" ?
      `${whole(node.opCount)} ${node.opCount === 1 ? "op" : "ops"}` :
      node.outputs.map((v) => shapeText(v.shape)).join(", ");
  c.fillText(fitText(c, below, w - 14), x + w / 2, middle + 9);
}

const textCache = new Map();
function fitText(c, text, width) {
  text = shorten(text, 120);
  const key = c.font + "\n" + Math.round(width) + "\n" + text;
  let fitted = textCache.get(key);
  if (fitted !== undefined) return fitted;
  fitted = text;
  if (c.measureText(text).width > width) {
    let low = 0, high = text.length;
    while (low + 1 < high) {
      const middle = (low + high) >> 1;
      if (c.measureText(text.slice(0, middle) + "…").width <= width)
        low = middle;
      else
        high = middle;
    }
    fitted = low > 0 ? text.slice(0, low) + "…" : "";
  }
  if (textCache.size > 20000) textCache.clear();
  textCache.set(key, fitted);
  return fitted;
}

// The value's rms and, in the other colour, its gradient's l2, above the end of each edge.
function drawLabels(c, strokes, seen) {
  const {colours} = graph;
  c.font = `9.5px ${kDigits}`;
  c.textBaseline = "alphabetic";
  c.textAlign = "left";
  c.lineJoin = "round";
  c.lineWidth = 3;
  c.strokeStyle = colours.frame;
  for (const s of strokes) {
    if (!s.target || s.x3 < seen.left || s.x2 - kLabelGap > seen.right || s.y2 < seen.top ||
        s.y2 > seen.bottom)
      continue;
    if (s.target.portSpace < 10.5) continue;
    const [forward, backward] = labelOf(s.edge);
    let x = s.x3 - 5 - c.measureText(forward + " " + backward).width;
    for (const [text, colour] of [[forward + " ", colours.forward], [backward, colours.backward]]) {
      c.strokeText(text, x, s.y2 - 3.5);
      c.fillStyle = colour;
      c.fillText(text, x, s.y2 - 3.5);
      x += c.measureText(text).width;
    }
  }
}

// An edge between collapsed scopes can stand for several values: the first one's numbers, and a
// mark.
function labelOf(edge) {
  const {source, output} = edge.uses[0], value = source.outputs[output];
  const several = edge.uses.some((use) => use.source !== source || use.output !== output);
  const text = (numbers, name) => {
    const x = figureOf(numbers, name);
    return x === null ? "–" : Number.isNaN(x) ? "⚠" : digits(x, 3);
  };
  return [text(value.value, "rms"), text(value.gradient, "l2") + (several ? " …" : "")];
}
