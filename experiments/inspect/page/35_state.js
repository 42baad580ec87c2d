// What the page shows: the record, the step, the selection, what is expanded. Parts of the page
// change it through these functions and listen to what they announce.

const page = {
  record: null,
  models: [],  // a StepModel a step, made when first shown
  model: null,
  stepIndex: 0,
  selection: null,      // an id (see idOf); it stays when the step changes
  expanded: new Set(),  // paths of scopes
  colourBy: "gradient",
  showLeaves: true,
  dark: false,
  tab: "graph",
  listeners: new Map(),
};

function listen(event, action) {
  if (!page.listeners.has(event)) page.listeners.set(event, []);
  page.listeners.get(event).push(action);
}

function tell(event, detail) {
  for (const action of page.listeners.get(event) ?? []) action(detail);
}

function modelAt(index) {
  return (page.models[index] ??= new StepModel(page.record.steps[index]));
}

function showStep(index) {
  index = Math.min(page.record.steps.length - 1, Math.max(0, index));
  if (page.model && index === page.stepIndex) return;
  page.stepIndex = index;
  page.model = modelAt(index);
  tell("step");
}

function selectedNode() {
  return page.selection === null ? null : page.model.find(page.selection);
}

// Selects an op, leaf or scope and remembers it in the history. With `reveal`, scopes around it
// expand and the graph moves to it.
function select(node, {reveal = true, history = true} = {}) {
  page.selection = idOf(node);
  if (reveal) revealNode(node);
  if (history && location.hash !== hashOf(node)) location.hash = hashOf(node);
  tell("selection", {reveal});
  announce("Selected " + shorten(titleOf(node), 200));
}

function selectKey(key) {
  const node = page.model?.find(key) ?? null;
  if (node) {
    showTab("graph");
    select(node);
  }
  return node !== null;
}

function revealNode(node) {
  let grew = false;
  for (let scope = node.kind === "scope" ? node.parent : node.scope; scope && scope.parent;
       scope = scope.parent)
    if (!page.expanded.has(scope.path)) {
      page.expanded.add(scope.path);
      grew = true;
    }
  if (node.kind === "leaf" && !page.showLeaves) {
    page.showLeaves = byId("show-leaves").checked = true;
    grew = true;
  }
  if (grew) tell("expanded", {});
}

// `at` is the node that should stay where it is on the screen.
function setExpanded(scope, open) {
  if (scope.path === "" || page.expanded.has(scope.path) === open) return;
  if (open)
    page.expanded.add(scope.path);
  else
    page.expanded.delete(scope.path);
  tell("expanded", {at: scope});
}

function expandAll() {
  for (const path of page.model.scopes.keys())
    if (path !== "") page.expanded.add(path);
  tell("expanded", {fit: true});
}

function collapseAll() {
  page.expanded.clear();
  tell("expanded", {fit: true});
}

// The first picture: scopes open from the outside in while there are few boxes.
function expandAtFirst(model, most = 16) {
  let row = [model.root], count = model.root.members.length;
  while (row.length) {
    const next = [];
    for (const scope of row) {
      if (scope.path !== "") {
        if (count + scope.members.length > most) continue;
        page.expanded.add(scope.path);
        count += scope.members.length - 1;
      }
      next.push(...scope.children);
    }
    row = next;
  }
}

function showTab(tab) {
  if (tab === "attention" && page.record.attentions.length === 0) return;
  page.tab = tab;
  for (const name of ["graph", "attention"]) {
    const button = byId("tab-" + name);
    button.setAttribute("aria-selected", String(name === tab));
    button.tabIndex = name === tab ? 0 : -1;
    byId("view-" + name).hidden = name !== tab;
  }
  byId("steps").hidden = tab !== "graph" || page.model === null;
  byId("search-box").hidden = page.model === null;
  tell("tab");
}

function setTheme(dark) {
  page.dark = dark;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme-button").textContent = dark ? "Light" : "Dark";
  tell("theme");
}
