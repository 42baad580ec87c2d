// The graph's picture: its layout, and the view (scale and shift) that keys, wheel and mouse move.

const graph = {
  canvas: null,
  context: null,
  layout: null,
  view: {scale: 1, x: 0, y: 0},
  width: 0,
  height: 0,
  dirty: false,
  hover: null,
  colouring: null,
  colours: {},
  highlight: null,
  frames: {count: 0, last: 0, longest: 0, layout: 0},
};

function startGraph() {
  graph.canvas = byId("graph");
  graph.context = graph.canvas.getContext("2d");
  new ResizeObserver(() => resizeGraph()).observe(byId("canvas-box"));
  listen("step", () => {
    const last = graph.model;
    if (!last || !last.sameGraph(page.model))
      layoutAgain();
    else
      rebindGraph();
  });
  listen("expanded", ({at = null, fit = false}) => {
    layoutAgain(at);
    if (fit) fitGraph();
  });
  listen("selection", ({reveal}) => {
    graph.highlight = null;
    const node = selectedNode();
    if (reveal && node) centreOn(node);
    redraw();
  });
  for (const event of ["theme", "colours"]) listen(event, colourAgain);
  listen("tab", () => resizeGraph());
  resizeGraph();
}

function layoutAgain(at = null) {
  const before = at && placeOfNode(at);
  const start = performance.now();
  graph.model = page.model;
  graph.layout = layoutGraph(page.model, page.expanded, page.showLeaves);
  graph.frames.layout = performance.now() - start;
  graph.highlight = graph.hover = null;
  const after = at && placeOfNode(at);
  if (before && after) {
    graph.view.x += (before.x - after.x) * graph.view.scale;
    graph.view.y += (before.y - after.y) * graph.view.scale;
  }
  colourAgain();
}

// The same graph with the figures of another step: boxes stay where they are.
function rebindGraph() {
  const model = page.model, {layout} = graph;
  const find = (node) =>
      (node.kind === "scope" ? model.scopes.get(node.path) : model.items[node.id]);
  layout.nodeOfScope =
      new Map([...layout.nodeOfScope].map(([scope, place]) => [find(scope), place]));
  for (const place of [...layout.boxes, ...layout.frames]) place.node = find(place.node);
  for (const edge of layout.edges)
    for (const use of edge.uses) {
      use.source = find(use.source);
      use.target = find(use.target);
    }
  graph.model = model;
  colourAgain();
}

function colourAgain() {
  if (!page.model) return;
  graph.colouring = new Colouring(page.colourBy, page.model, page.dark);
  for (const box of graph.layout?.boxes ?? []) box.fill = graph.colouring.colourOf(box.node);
  const style = getComputedStyle(document.documentElement);
  for (const name
           of ["canvas", "frame", "frame-line", "line", "ink", "dim", "forward", "backward",
               "accent"])
    graph.colours[name] = style.getPropertyValue("--" + name).trim();
  fillLegend(byId("legend"), graph.colouring);
  redraw();
}

function resizeGraph() {
  const box = byId("canvas-box"), {canvas} = graph;
  if (box.clientWidth === 0) return;
  const first = graph.width === 0;
  // What was in the middle stays there.
  graph.view.x += first ? 0 : (box.clientWidth - graph.width) / 2;
  graph.view.y += first ? 0 : (box.clientHeight - graph.height) / 2;
  graph.width = box.clientWidth;
  graph.height = box.clientHeight;
  graph.ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(graph.width * graph.ratio);
  canvas.height = Math.round(graph.height * graph.ratio);
  if (first && graph.layout) fitGraph(kSmallestAtFirst);
  drawNow();
}

// The box or frame of a node, or the box of the collapsed scope around it.
function placeOfNode(node) {
  if (!graph.layout) return null;
  return node.kind === "scope" ? graph.layout.nodeOfScope.get(node) ?? null :
                                 graph.layout.boxOfItem[node.id];
}

const kSmallestAtFirst = 0.46;  // boxes still carry text

// A smallest scale leaves a wide graph readable at its left end rather than small as a whole.
function fitGraph(smallest = 0) {
  const {root} = graph.layout, {view, width} = graph, margin = 16;
  const height = Math.max(80, graph.height - 50);  // the legend lies below
  const whole = Math.min((width - 2 * margin) / root.w, (height - margin) / root.h);
  view.scale = Math.min(1.2, Math.max(smallest, whole, 0.002));
  view.x = Math.max(margin, (width - root.w * view.scale) / 2);
  view.y = Math.max(margin / 2, (height - root.h * view.scale) / 2);
  redraw();
}

function centreOn(node) {
  const place = placeOfNode(node), {view, width, height} = graph;
  if (!place || width === 0) return;
  const fits = Math.min((width - 40) / place.w, (height - 40) / place.h);
  if (place.kind === "frame")
    view.scale = Math.min(1, fits);
  else if (view.scale < 0.7 || view.scale > 3)
    view.scale = 1;
  view.x = width / 2 - (place.x + place.w / 2) * view.scale;
  view.y = height / 2 - (place.y + place.h / 2) * view.scale;
  redraw();
}

function zoomGraph(factor, x = graph.width / 2, y = graph.height / 2) {
  const {view} = graph, scale = Math.min(4, Math.max(0.002, view.scale * factor));
  view.x = x - ((x - view.x) * scale) / view.scale;
  view.y = y - ((y - view.y) * scale) / view.scale;
  view.scale = scale;
  redraw();
}

function panGraph(dx, dy) {
  graph.view.x += dx;
  graph.view.y += dy;
  redraw();
}

function redraw() {
  if (graph.dirty) return;
  graph.dirty = true;
  requestAnimationFrame(() => graph.dirty && drawNow());
}

function drawNow() {
  graph.dirty = false;
  if (!graph.layout || graph.width === 0 || page.tab !== "graph") return;
  const start = performance.now();
  drawGraph();
  graph.frames.last = performance.now() - start;
  graph.frames.longest = Math.max(graph.frames.longest, graph.frames.last);
  ++graph.frames.count;
}

// The part of the picture that is on the screen.
function visibleRect() {
  const {view, width, height} = graph;
  return {
    left: -view.x / view.scale,
    top: -view.y / view.scale,
    right: (width - view.x) / view.scale,
    bottom: (height - view.y) / view.scale
  };
}

function visibleBoxes() {
  const {left, top, right, bottom} = visibleRect();
  return graph.layout.boxes.filter(
      (b) => b.x < right && b.x + b.w > left && b.y < bottom && b.y + b.h > top);
}
