// Starts the page: reads the record, wires its parts, and says when it is ready.

const kKeys = [
  ["/", "search by name"],
  [", and .", "step before, step after"],
  ["g, a", "tab of the graph, of kernelized attention"],
  ["b", "next way of colouring"],
  ["e, c", "expand all, collapse all"],
  ["f", "show the whole graph"],
  ["+, -", "zoom"],
  ["t", "light or dark"],
  ["?", "this help"],
  ["Esc", "close; from search to the graph"],
  ["in the tree", "arrow keys move; Right opens, Left closes; Home, End; Enter selects"],
  [
    "in the graph",
    "arrow keys move the view, with Shift along edges; Enter opens or closes the selection"
  ],
  [
    "mouse", "drag moves, wheel zooms, click selects, double click opens; a frame's title closes it"
  ],
  ["in a map", "arrow keys move over the pairs of query and key"],
  ["back, forward", "selections before and after, as in any page"],
];

function start() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = false;
  setTheme(dark.matches);
  dark.addEventListener("change", () => chosen || setTheme(dark.matches));
  const turn = () => {
    chosen = true;
    setTheme(!page.dark);
  };
  byId("theme-button").addEventListener("click", turn);
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("help-table")
      .append(...kKeys.map(
          ([keys, what]) =>
              make("tr", null, make("th", {scope: "row"}, keys), make("td", null, what))));
  try {
    page.record = readRecord(byId("record").textContent);
  } catch (error) {
    showProblem(error);
    return;
  }
  startParts();
  document.addEventListener("keydown", (event) => pageKey(event, turn));
}

function showProblem(error) {
  const known = error instanceof RecordProblem;
  const box = byId("problem");
  box.textContent =
      known ? error.message : "The record of this page cannot be shown: " + error.message;
  box.hidden = false;
  for (const id of ["view-graph", "view-attention", "steps", "search-box", "tabs", "about-button"])
    byId(id).hidden = true;
  document.documentElement.dataset.ready = "no";
}

function startParts() {
  const {record} = page;
  byId("title").textContent = document.title = shorten(record.title, 200);
  byId("about-table").append(...record.about.map(([name,
                                                   value]) => row(name, shorten(value, 5000))));
  byId("about-button").hidden = record.about.length === 0;
  byId("about-button").addEventListener("click", () => byId("about").showModal());
  for (const tab of ["graph", "attention"])
    byId("tab-" + tab).addEventListener("click", () => showTab(tab));
  byId("tabs").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    showTab(page.tab === "graph" ? "attention" : "graph");
    byId("tab-" + page.tab).focus();
  });
  byId("colour-by").append(...kColourings.map((c) => make("option", {value: c.id}, c.name)));
  byId("colour-by").addEventListener("change", (event) => colourBy(event.target.value));
  startAttention();
  if (record.steps.length > 0) {
    startSteps();
    startGraph();
    startGraphInput();
    startTree();
    startSearch();
    startDetails();
    // The last step is the one that gradients.csv and the pictures of values are of.
    const last = record.steps.length - 1;
    expandAtFirst(modelAt(last));
    showStep(last);
    if (page.model.opCount === 0) byId("announce").textContent = "The record holds no operations.";
    fitGraph(kSmallestAtFirst);
    followHash();
    window.addEventListener("hashchange", followHash);
  }
  showTab(record.steps.length > 0 ? "graph" : "attention");
  byId("tab-graph").hidden = record.steps.length === 0;
  if (record.steps.length > 0 && page.model.opCount === 0 && page.model.items.length === 0)
    showProblem(new RecordProblem("The record is empty: its step holds no operations."));
  else
    ready();
}

function ready() {
  const time = performance.now();
  document.documentElement.dataset.readyMs = time.toFixed(1);
  document.documentElement.dataset.ready = "yes";
  window.macgradPage.ready = true;
}

function colourBy(id) {
  page.colourBy = byId("colour-by").value = id;
  tell("colours");
}

// The hash names the selection; without one the whole step is shown.
function followHash() {
  let key = "";
  try {
    key = decodeURIComponent(location.hash.slice(1));
  } catch {
    return;  // no name of this page
  }
  if (key === "" ? page.selection === null : key === page.selection) return;
  const node = key === "" ? page.model.root : page.model.find(key);
  if (node) {
    showTab("graph");
    select(node, {history: false, reveal: key !== ""});
  }
}

function pageKey(event, turn) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]"))
    return;
  const {target} = event;
  if (target.matches("input:not([type=range]):not([type=checkbox]), textarea")) return;
  const graphShown = page.model !== null && page.tab === "graph";
  const actions = {
    "?": () => byId("help").showModal(),
    t: turn,
    g: () => page.model && showTab("graph"),
    a: () => showTab("attention"),
    "/": () => page.model && byId("search").select(),
  };
  if (graphShown)
    Object.assign(actions, {
      ",": () => showStep(page.stepIndex - 1),
      ".": () => showStep(page.stepIndex + 1),
      e: expandAll,
      c: collapseAll,
      f: () => fitGraph(),
      "+": () => zoomGraph(1.3),
      "=": () => zoomGraph(1.3),
      "-": () => zoomGraph(1 / 1.3),
      b: () => colourBy(
          kColourings
              [(kColourings.findIndex((c) => c.id === page.colourBy) + 1) % kColourings.length]
                  .id),
    });
  if (target.matches("select") && event.key.length === 1 && /[a-z]/.test(event.key)) return;
  if (!(event.key in actions)) return;
  event.preventDefault();
  actions[event.key]();
}

// What tests look at: the boxes on the screen in page coordinates, times, and the same actions as
// the keys.
window.macgradPage = {
  ready: false,
  select: selectKey,
  expandAll,
  collapseAll,
  showStep,
  showTab,
  fit: () => fitGraph(),
  draw: () => drawNow(),
  pan: panGraph,
  boxes() {
    const rect = graph.canvas.getBoundingClientRect(), {view} = graph;
    return visibleBoxes().map((box) => ({
                                key: idOf(box.node),
                                kind: box.kind,
                                width: box.w * view.scale,
                                height: box.h * view.scale,
                                x: rect.left + box.x * view.scale + view.x,
                                y: rect.top + box.y * view.scale + view.y,
                              }));
  },
  get selection() {
    return page.selection;
  },
  get frames() {
    return {...graph.frames};
  },
  get counts() {
    return {
      boxes: graph.layout.boxes.length,
      frames: graph.layout.frames.length,
      strokes: graph.layout.strokes.length
    };
  },
  forgetFrames() {
    graph.frames.longest = 0;
  },
};

start();
