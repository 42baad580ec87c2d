// From places inside frames to places in the picture, and wires to strokes: a line through the
// column of the start, a curve through the gap (or a turn into the next row), a line through the
// column of the end.

function placeFrame(layout, frame, x, y) {
  frame.x = x;
  frame.y = y;
  for (const {vertices, x: left, width} of frame.columns)
    for (const {node, y: top} of vertices) {
      if (!node) continue;
      const nodeX = x + left + (width - node.w) / 2;
      if (node.kind === "frame")
        placeFrame(layout, node, nodeX, y + top);
      else
        Object.assign(node, {x: nodeX, y: y + top});
    }
  if (frame.frame === null) drawStrokes(layout);
}

function drawStrokes(layout) {
  layout.strokes = [];
  for (const frame of layout.frames) {
    frame.arrivals = new Map();    // by source: the stroke that ends at this frame
    frame.departures = new Map();  // by source: the stroke inside that ends at its right border
    for (const link of frame.links) layout.strokes.push(strokeOf(frame, link));
  }
  spreadPorts(layout);
  for (const frame of layout.frames) chainStrokes(frame);
}

function strokeOf(frame, link) {
  const {a, b} = link, from = frame.columns[a.column], to = frame.columns[b.column];
  const left = frame.x + from.x, right = left + from.width, toLeft = frame.x + to.x;
  const stroke = {
    link,
    frame,
    source: link.wire.source,
    target: b.node && b.node.kind !== "frame" ? b.node : null,
    edge: link.edge,
    backward: link.backward === true,
    turn: null,
    x0: a.node ? a.node.x + a.node.w : left,
    x1: right,
    y1: frame.y + a.y + link.aOffset,
    x2: toLeft,
    y2: frame.y + b.y + link.bOffset,
    x3: b.node ? b.node.x : toLeft + to.width,
  };
  if (stroke.backward) {
    stroke.x1 = stroke.x0;
    stroke.x2 = stroke.x3;
  } else if (from.row !== to.row && b.column === a.column + 1) {
    // Lanes from the top down for starts from the bottom up: the wires of a turn lie inside each
    // other.
    const lanes = from.vertices.filter((v) => v.crossing),
          lane = lanes.length - 1 - lanes.indexOf(a);
    stroke.turn = {
      right: frame.x + from.row.right + kTurn + lane * kLane,
      left: frame.x + kTurn + (lanes.length - 1 - lane) * kLane,
      y: frame.y + from.row.gutter + lane * kLane,
    };
  }
  link.stroke = stroke;
  return stroke;
}

// Edges arrive at a box one below the other, in the order of where they come from.
function spreadPorts(layout) {
  const arriving = new Map();
  for (const stroke of layout.strokes) {
    if (!stroke.target) continue;
    if (!arriving.has(stroke.target)) arriving.set(stroke.target, []);
    arriving.get(stroke.target).push(stroke);
  }
  for (const [box, strokes] of arriving) {
    strokes.sort((s, t) => s.y1 - t.y1);
    strokes.forEach((stroke, i) => (stroke.y2 = box.y + (box.h * (i + 1)) / (strokes.length + 1)));
    box.portSpace = box.h / (strokes.length + 1);
  }
}

// Remembers where wires come into a frame and leave it, for `strokeBefore`.
function chainStrokes(frame) {
  for (const {b, wire, stroke} of frame.links) {
    if (b.node && b.node.kind === "frame") b.node.arrivals.set(wire.source.id, stroke);
    if (b.leaves !== undefined) frame.departures.set(wire.source.id, stroke);
  }
}

// The stroke before this one on the way from its source; null at the source.
function strokeBefore({link, frame}) {
  const {a, wire} = link, id = wire.source.id;
  if (a.node) return a.node.kind === "frame" ? a.node.departures.get(id) ?? null : null;
  if (a.column > 0) return a.left.length ? a.left[0].stroke : null;
  return frame.arrivals.get(id) ?? null;
}

// All strokes of the edges that arrive at a box or leave it.
function strokesAt(layout, box) {
  const incoming = new Set(), outgoing = layout.strokes.filter((stroke) => stroke.source === box);
  for (const last of layout.strokes) {
    if (last.target !== box) continue;
    for (let stroke = last; stroke && !incoming.has(stroke); stroke = strokeBefore(stroke))
      incoming.add(stroke);
  }
  return {incoming: [...incoming], outgoing};
}
