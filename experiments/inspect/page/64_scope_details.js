// The panel of a selected scope: what it holds, costs, and hands on.

function scopeDetails(scope) {
  const inside = itemsBelow(scope), ops = inside.filter((item) => item.kind === "op");
  const leaves = inside.filter((item) => item.kind === "leaf"),
        parameters = leaves.filter((item) => item.entry.kind === "parameter");
  const sum = (name) => ops.reduce((total, item) => total + (item.entry[name] ?? 0), 0);
  const entries = parameters.reduce(
      (total, item) => total + (item.entry.shape ?? []).reduce((a, b) => a * b, 1), 0);
  const members = new Set(inside);
  const leaving = ops.flatMap((item) => item.outputs.map((value, o) => ({item, value, o})))
                      .filter(
                          ({item, o}) => item.consumers.some(
                              (use) => use.output === o && !members.has(use.target)));
  const entering = new Map();
  for (const item of ops)
    for (const {source, output} of item.inputs)
      if (source && !members.has(source) && source.kind === "op")
        entering.set(
            source.id + " " + output, {item: source, value: source.outputs[output], o: output});
  const both = sum("seconds") + sum("backward_seconds");
  return [
    heading(
        scope.path === "" ? "step" : "scope", scope.path === "" ? page.record.title : scope.path),
    make(
        "table", {class: "facts"}, row("ops", numberSpan(ops.length, whole(ops.length))),
        row("parameters", numberSpan(parameters.length, whole(parameters.length)),
            ` with ${whole(entries)} entries`),
        row("forward", numberSpan(sum("seconds"), seconds(sum("seconds")))),
        row("backward", numberSpan(sum("backward_seconds"), seconds(sum("backward_seconds")))),
        row("both", numberSpan(both, seconds(both))),
        row("memory", numberSpan(sum("bytes"), bytes(sum("bytes"))),
            make("div", {class: "quiet"}, "sum over the outputs of its ops")),
        scope.parent ? row("in", nodeLink(scope.parent)) : null),
    scope.path === "" ? null : valueSection("leaving", "Values leaving it", leaving),
    scope.path === "" ? null :
                        valueSection("entering", "Values entering it", [...entering.values()]),
    costList(scope),
    leaves.length ?
        make(
            "section", {id: "parameters"}, make("h3", null, "Parameters and other leaves"),
            valueTable(leaves.map((item) => ({item, value: item.entry, o: 0})), scope)) :
        null,
    overSteps(),
  ].filter(Boolean);
}

function itemsBelow(scope) {
  return scope.members.flatMap((node) => (node.kind === "scope" ? itemsBelow(node) : [node]));
}

function valueSection(id, title, values) {
  return make(
      "section", {id}, make("h3", null, `${title} (${whole(values.length)})`),
      values.length ? valueTable(values, page.model.root) : make("p", {class: "quiet"}, "none"));
}

function valueTable(values, scope) {
  const start = scope.path === "" ? 0 : scope.path.length + 1;
  const number = (numbers, name, kind) => {
    const x = figureOf(numbers, name);
    return make(
        "td", {class: kind},
        x === null ?
            "–" :
            numberSpan(Number.isNaN(x) ? null : x, Number.isNaN(x) ? "not finite" : digits(x)));
  };
  const table = longList(values, ({item, value, o}) => {
    const name = item.key.slice(item.key.startsWith(scope.path) ? start : 0) +
        (item.outputs.length > 1 ? `[${o}]` : "");
    return make(
        "tr", null,
        make(
            "td", null, nodeLink(item, name || item.key),
            make("div", {class: "quiet"}, shapeText(value.shape))),
        number(value.value, "rms", "forward"), number(value.gradient, "l2", "backward"));
  }, "table");
  table.classList.add("values");
  table.prepend(make(
      "tr", null, make("td"), make("th", {scope: "col", class: "forward"}, "rms"),
      make("th", {scope: "col", class: "backward"}, "gradient l2")));
  return table;
}

// Where the time goes: the children of a scope, the costliest first.
function costList(scope) {
  const parts =
      scope.members.filter((node) => node.kind !== "leaf" && (node.figures.seconds ?? 0) > 0)
          .sort((a, b) => b.figures.seconds - a.figures.seconds);
  if (parts.length < 2) return null;
  const total = parts.reduce((sum, node) => sum + node.figures.seconds, 0);
  const table = longList(parts, (node) => {
    const bar = make("span", {class: "share"});
    bar.style.width = Math.max(1, (60 * node.figures.seconds) / total) + "px";
    return make(
        "tr", null, make("td", null, nodeLink(node, shortName(node))),
        make("td", null, numberSpan(node.figures.seconds, seconds(node.figures.seconds))),
        make("td", null, bar),
        make("td", null, numberSpan(node.figures.bytes, bytes(node.figures.bytes))));
  }, "table", 12);
  table.classList.add("values");
  table.prepend(make(
      "tr", null, make("td"), make("th", {scope: "col"}, "time"), make("td"),
      make("th", {scope: "col"}, "memory")));
  return make("section", {id: "costs"}, make("h3", null, "Time and memory of its parts"), table);
}
