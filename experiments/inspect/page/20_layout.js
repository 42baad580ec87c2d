// The visible graph. A collapsed scope is one box; an expanded one is a frame around its members,
// which are boxes and frames again. An edge runs in the frame that holds both its ends, out of the
// frames around its source and into the frames around its target: in each of them it is a wire,
// shared by all edges of one source, and 22_layers.js lays a frame out with its wires.

const kOpSize = [128, 44], kLeafSize = [112, 28], kScopeSize = [156, 56];
const kPortSpace = 13;  // between two edges that arrive at a box

function layoutGraph(model, expanded, showLeaves) {
  const layout = {
    boxes: [],
    frames: [],
    edges: [],
    boxOfItem: new Array(model.items.length).fill(null),
    nodeOfScope: new Map()
  };
  layout.root = makeFrame(layout, model.root, null, expanded, showLeaves);
  connectBoxes(layout, model);
  for (const edge of layout.edges) addWires(edge);
  for (const box of layout.boxes)
    box.h = Math.max(box.h, kPortSpace * (Math.min(box.arriving, 16) + 1));
  layoutFrame(layout.root);
  placeFrame(layout, layout.root, 0, 0);
  return layout;
}

function makeFrame(layout, scope, parent, expanded, showLeaves) {
  const frame = {
    kind: "frame",
    node: scope,
    frame: parent,
    depth: scope.depth,
    members: [],
    wires: new Map(),
    links: [],
    inPorts: new Map(),
    outPorts: new Map(),
    x: 0,
    y: 0,
    w: 0,
    h: 0,
  };
  layout.frames.push(frame);
  layout.nodeOfScope.set(scope, frame);
  for (const node of scope.members) {
    if (node.kind === "leaf" && !showLeaves) continue;
    if (node.kind === "scope" && !showLeaves && node.opCount === 0) continue;
    if (node.kind === "scope" && expanded.has(node.path)) {
      frame.members.push(makeFrame(layout, node, frame, expanded, showLeaves));
      continue;
    }
    const [w, h] = node.kind === "op" ? kOpSize : node.kind === "leaf" ? kLeafSize : kScopeSize;
    const box =
        {kind: node.kind, node, frame, id: layout.boxes.length, x: 0, y: 0, w, h, arriving: 0};
    layout.boxes.push(box);
    frame.members.push(box);
    coverItems(layout, node, box, showLeaves);
  }
  return frame;
}

// Everything below a collapsed scope is drawn as its box.
function coverItems(layout, node, box, showLeaves) {
  if (node.kind !== "scope") {
    layout.boxOfItem[node.id] = box;
    return;
  }
  layout.nodeOfScope.set(node, box);
  for (const child of node.members)
    if (child.kind !== "leaf" || showLeaves) coverItems(layout, child, box, showLeaves);
}

// Edges between boxes, each with the inputs of ops it stands for.
function connectBoxes(layout, model) {
  const known = new Map();
  for (let t = 0; t < model.opCount; ++t) {
    const target = model.items[t], to = layout.boxOfItem[t];
    target.inputs.forEach(({source, output}, input) => {
      const from = source && layout.boxOfItem[source.id];
      if (!from || from === to) return;
      const key = from.id * layout.boxes.length + to.id;
      let edge = known.get(key);
      if (!edge) {
        known.set(key, edge = {from, to, uses: []});
        layout.edges.push(edge);
        ++to.arriving;
      }
      edge.uses.push({source, output, target, input});
    });
  }
}

function wireIn(frame, source, from) {
  let wire = frame.wires.get(source.id);
  if (!wire) frame.wires.set(source.id, wire = {source, from, targets: new Map(), out: false});
  return wire;
}

function addTarget(wire, node, edge) {
  if (!wire.targets.has(node)) wire.targets.set(node, []);
  wire.targets.get(node).push(edge);
}

// Up from the source to the frame that holds both ends, then down to the target.
function addWires(edge) {
  const {from, to} = edge;
  const depthOf = (node) => (node.frame ? node.frame.depth : -1);
  let up = from, down = to;
  const path = [];  // members passed on the way down, outermost last
  while (up.frame !== down.frame) {
    if (depthOf(up) >= depthOf(down)) {
      wireIn(up.frame, from, up).out = true;
      up = up.frame;
    } else {
      path.push(down);
      down = down.frame;
    }
  }
  addTarget(wireIn(up.frame, from, up), down, edge);
  for (const member of path) addTarget(wireIn(member.frame, from, null), member, edge);
}
