// Mouse, touch, wheel and keys on the graph.

function startGraphInput() {
  const {canvas} = graph;
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = {x: event.clientX, y: event.clientY, moved: false};
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) {
      hoverAt(event);
      return;
    }
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    drag = {x: event.clientX, y: event.clientY, moved: true};
    canvas.classList.add("dragging");
    hideTip();
    panGraph(dx, dy);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) clickAt(event);
    drag = null;
    canvas.classList.remove("dragging");
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", () => {
    graph.hover = null;
    hideTip();
    redraw();
  });
  canvas.addEventListener("dblclick", (event) => {
    const place = placeAt(event);
    if (place?.kind === "scope") setExpanded(place.node, true);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const step = event.deltaMode === 1 ? event.deltaY * 20 : event.deltaY;
    zoomGraph(Math.exp(-Math.max(-120, Math.min(120, step)) / 400), ...pointOf(event));
  }, {passive: false});
  canvas.addEventListener("keydown", graphKey);
  byId("zoom-in").addEventListener("click", () => zoomGraph(1.3));
  byId("zoom-out").addEventListener("click", () => zoomGraph(1 / 1.3));
  byId("fit").addEventListener("click", () => fitGraph());
  byId("expand-all").addEventListener("click", expandAll);
  byId("collapse-all").addEventListener("click", collapseAll);
  byId("show-leaves").addEventListener("change", (event) => {
    page.showLeaves = event.target.checked;
    tell("expanded", {});
  });
}

function pointOf(event) {
  const rect = graph.canvas.getBoundingClientRect();
  return [event.clientX - rect.left, event.clientY - rect.top];
}

// The box under the mouse, or the innermost frame whose title is.
function placeAt(event) {
  const [px, py] = pointOf(event), {view, layout} = graph;
  if (!layout) return null;
  const x = (px - view.x) / view.scale, y = (py - view.y) / view.scale;
  const inside = (r, h = r.h) => x >= r.x && x <= r.x + r.w && y >= r.y && y <= r.y + h;
  const box = layout.boxes.find((b) => inside(b));
  if (box) return box;
  const frames = layout.frames.filter((f) => f !== layout.root && inside(f, kHeader));
  return frames.length ? frames[frames.length - 1] : null;
}

// A click on a box selects it; a second one on a selected scope opens it, and on a frame's title
// closes it.
function clickAt(event) {
  const place = placeAt(event);
  if (!place) return;
  const again = selectedNode() === place.node, sign = signOf(place, pointOf(event)[0]);
  if (place.kind === "frame" && (again || sign)) setExpanded(place.node, false);
  if (place.kind === "scope" && sign) setExpanded(place.node, true);
  select(place.node, {reveal: false});
  hideTip();
}

// Whether the click hit the sign that opens or closes.
function signOf(place, px) {
  const left = place.x * graph.view.scale + graph.view.x, room = (kHeader * graph.view.scale);
  return place.kind === "frame" ?
      px < Math.max(left, 0) + Math.max(room, 18) :
      px < left + 24 * graph.view.scale && graph.view.scale >= kTextScale;
}

function hoverAt(event) {
  const place = placeAt(event), box = place && place.kind !== "frame" ? place : null;
  graph.canvas.style.cursor = place ? "pointer" : "grab";
  if (box !== graph.hover) {
    graph.hover = box;
    redraw();
  }
  const tip = byId("tip");
  if (!place) {
    hideTip();
    return;
  }
  const {node} = place, {figures} = node;
  const figure = (x) => (x === null ? "none" : Number.isNaN(x) ? "not finite" : digits(x));
  tip.replaceChildren(
      make("strong", null, shorten(titleOf(node), 160)),
      make(
          "div", null,
          node.kind === "scope" ?
              `${whole(node.opCount)} ops · ${seconds(figures.seconds)} · ${bytes(figures.bytes)}` :
              node.outputs.map((v) => `${shapeText(v.shape)} ${v.dtype ?? ""}`).join(", ")),
      make(
          "div", null,
          `${node.kind === "scope" ? "largest " : ""}rms ${figure(figures.rms)} · gradient l2 ${
              figure(figures.gradient)}`));
  tip.hidden = false;
  const [x, y] = pointOf(event);
  tip.style.left = Math.max(4, Math.min(x + 14, graph.width - tip.offsetWidth - 6)) + "px";
  tip.style.top =
      (y + 18 + tip.offsetHeight > graph.height ? y - tip.offsetHeight - 10 : y + 18) + "px";
}

function hideTip() {
  byId("tip").hidden = true;
}

function graphKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !graph.layout) return;
  const arrows = {ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [
                    0, -1
                  ]}[event.key];
  if (arrows && event.shiftKey)
    walk(event.key);
  else if (arrows)
    panGraph(arrows[0] * 60, arrows[1] * 60);
  else if (event.key === "Enter") {
    const node = selectedNode();
    if (node?.kind === "scope")
      setExpanded(node, !page.expanded.has(node.path));
    else
      return;
  } else
    return;
  event.preventDefault();
}

// Along an edge to the left or right, or to the nearest box above or below.
function walk(key) {
  const node = selectedNode(), place = node && placeOfNode(node), {layout} = graph;
  let next = null;
  if (!place || place.kind === "frame") {
    next = visibleBoxes()[0] ?? null;
  } else if (key === "ArrowLeft") {
    next = layout.edges.find((edge) => edge.to === place)?.from ?? null;
  } else if (key === "ArrowRight") {
    next = layout.edges.find((edge) => edge.from === place)?.to ?? null;
  } else {
    const sign = key === "ArrowUp" ? -1 : 1;
    let nearest = Infinity;
    for (const box of layout.boxes) {
      const down = (box.y + box.h / 2 - place.y - place.h / 2) * sign;
      const far = down + 3 * Math.abs(box.x + box.w / 2 - place.x - place.w / 2);
      if (down > 0 && far < nearest) [nearest, next] = [far, box];
    }
  }
  if (next) select(next.node);
}
