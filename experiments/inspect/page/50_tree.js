// The model as an ARIA tree. Only rows in sight are in the document: thousands of ops expanded at
// once stay fast. The tree keeps the focus and names its active row (aria-activedescendant).

const kRowHeight = 23;

const tree = {
  element: null,
  rows: [],
  active: 0,
  typed: ""
};

function startTree() {
  tree.element = byId("tree");
  tree.element.addEventListener("scroll", drawTree);
  tree.element.addEventListener("keydown", treeKey);
  tree.element.addEventListener("focus", drawTree);
  byId("tree-rows").addEventListener("click", (event) => {
    const index = Number(event.target.closest(".tree-row")?.dataset.index ?? -1);
    if (index < 0) return;
    tree.active = index;
    const {node} = tree.rows[index];
    if (event.target.classList.contains("twist"))
      setExpanded(node, !page.expanded.has(node.path));
    else
      select(node);
  });
  byId("tree-rows").addEventListener("dblclick", (event) => {
    const row = tree.rows[Number(event.target.closest(".tree-row")?.dataset.index ?? -1)];
    if (row?.node.kind === "scope" && !event.target.classList.contains("twist"))
      setExpanded(row.node, !row.open);
  });
  for (const event of ["step", "expanded"]) listen(event, listRows);
  for (const event of ["theme", "colours"]) listen(event, drawTree);
  listen("selection", () => {
    const at = tree.rows.findIndex(({node}) => idOf(node) === page.selection);
    if (at >= 0) makeActive(at);
    drawTree();
  });
  new ResizeObserver(drawTree).observe(tree.element);
}

function listRows() {
  const kept = tree.rows[tree.active] && idOf(tree.rows[tree.active].node);
  tree.rows = [];
  const add = (node, level, place, size) => {
    const open = node.kind === "scope" && (node.path === "" || page.expanded.has(node.path));
    tree.rows.push({node, level, place, size, open});
    if (open) node.members.forEach((child, i) => add(child, level + 1, i + 1, node.members.length));
  };
  add(page.model.root, 1, 1, 1);
  const at = tree.rows.findIndex(({node}) => idOf(node) === kept);
  tree.active = at >= 0 ? at : Math.min(tree.active, tree.rows.length - 1);
  drawTree();
}

function drawTree() {
  const {element, rows} = tree, holder = byId("tree-rows");
  if (element.clientHeight === 0 || !page.model) return;
  holder.style.height = rows.length * kRowHeight + "px";
  const from = Math.max(0, Math.floor(element.scrollTop / kRowHeight) - 4);
  const to =
      Math.min(rows.length, Math.ceil((element.scrollTop + element.clientHeight) / kRowHeight) + 4);
  const shown = [];
  for (let i = from; i < to; ++i) shown.push(i);
  // The active row is in the document even when it is scrolled out of sight: it must exist to be
  // named.
  if (tree.active < from || tree.active >= to) shown.push(tree.active);
  holder.replaceChildren(...shown.filter((i) => rows[i]).map(treeRow));
  element.setAttribute("aria-activedescendant", "row-" + tree.active);
}

function treeRow(index) {
  const {node, level, place, size, open} = tree.rows[index], scope = node.kind === "scope";
  const dot = make("span", {class: "dot " + node.kind});
  if (graph.colouring) dot.style.background = graph.colouring.colourOf(node);
  const row = make(
      "div", {
        id: "row-" + index,
        class: "tree-row" + (index === tree.active ? " active" : ""),
        role: "treeitem",
        "data-index": index,
        "data-key": idOf(node),
        "aria-level": level,
        "aria-posinset": place,
        "aria-setsize": size,
        "aria-expanded": scope && node.path !== "" ? String(open) : null,
        "aria-selected": String(idOf(node) === page.selection),
        title: titleOf(node),
      },
      make(
          "span", {class: "twist", "aria-hidden": "true"},
          scope && node.path !== "" ? (open ? "▾" : "▸") : ""),
      dot,
      make(
          "span", {class: "row-name"},
          node.path === "" ? page.record.title :
              scope        ? nameOf(node) :
                             shorten(shortName(node), 200)),
      scope ? make("span", {class: "count"}, whole(node.opCount)) : null);
  row.style.top = index * kRowHeight + "px";
  row.style.paddingLeft = 4 + (level - 1) * 13 + "px";
  return row;
}

function makeActive(index) {
  tree.active = Math.min(tree.rows.length - 1, Math.max(0, index));
  const top = tree.active * kRowHeight, {element} = tree;
  if (top < element.scrollTop)
    element.scrollTop = top - kRowHeight;
  else if (top + 2 * kRowHeight > element.scrollTop + element.clientHeight)
    element.scrollTop = top + 2 * kRowHeight - element.clientHeight;
  drawTree();
}

function treeKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const row = tree.rows[tree.active],
        page_rows = Math.max(1, Math.floor(tree.element.clientHeight / kRowHeight) - 1);
  if (!row) return;
  const scope = row.node.kind === "scope" && row.node.path !== "" ? row.node : null;
  const steps = {
    ArrowDown: 1,
    ArrowUp: -1,
    PageDown: page_rows,
    PageUp: -page_rows,
    Home: -Infinity,
    End: Infinity
  };
  if (event.key in steps)
    makeActive(tree.active + steps[event.key]);
  else if (event.key === "Enter" || event.key === " ")
    select(row.node);
  else if (event.key === "ArrowRight" && scope && !row.open)
    setExpanded(scope, true);
  else if (event.key === "ArrowRight")
    row.open && makeActive(tree.active + 1);
  else if (event.key === "ArrowLeft" && scope && row.open)
    setExpanded(scope, false);
  else if (event.key === "ArrowLeft") {
    for (let i = tree.active - 1; i >= 0; --i)
      if (tree.rows[i].level < row.level) {
        makeActive(i);
        break;
      }
  } else
    return;
  event.preventDefault();
}
