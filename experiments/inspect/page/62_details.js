// The panel of the selection: an op or a leaf.

const kFigures = ["min", "max", "mean", "rms", "l2", "zeros", "non_finite", "count"];
const kFigureNames = {
  non_finite: "not finite"
};

function startDetails() {
  for (const event of ["selection", "step", "theme"]) listen(event, showDetails);
}

function showDetails() {
  const panel = byId("details");
  if (!page.model) return;
  const node = page.selection === null ? page.model.root : selectedNode();
  panel.dataset.key = node ? idOf(node) : "";
  panel.scrollTop = 0;
  if (!node) {
    panel.replaceChildren(
        heading("Selection", page.selection),
        make("p", null, "This step has no entry of this name."), overSteps());
    return;
  }
  panel.replaceChildren(...(node.kind === "scope" ? scopeDetails(node) : itemDetails(node)));
}

function heading(kind, name) {
  return make(
      "header", {class: "details-head"}, make("div", {class: "kind"}, kind),
      make("h2", {id: "selected-name", title: name}, breakable(name)));
}

function row(name, ...values) {
  return make("tr", null, make("th", {scope: "row"}, name), make("td", null, values));
}

function itemDetails(item) {
  const {entry} = item, op = item.kind === "op";
  const formula = op ? page.record.formulas.get(entry.op) : undefined;
  const parts = [
    heading(op ? "op " + entry.op : entry.kind ?? "leaf", item.key),
    formula === undefined ? null : make("p", {class: "formula", id: "formula"}, String(formula)),
  ];
  const facts = make("table", {class: "facts"}, row("scope", nodeLink(item.scope)));
  if (op) {
    for (const [name, value] of pairs(entry.attributes))
      facts.append(row(name, shorten(value, 2000)));
    facts.append(
        row("forward", numberSpan(entry.seconds ?? null, seconds(entry.seconds))),
        row("backward",
            entry.backward_seconds === null || entry.backward_seconds === undefined ?
                "its gradient rule did not run" :
                numberSpan(entry.backward_seconds, seconds(entry.backward_seconds))),
        row("memory", numberSpan(entry.bytes ?? null, bytes(entry.bytes))));
    if (entry.fused_difference !== undefined)
      facts.append(
          row("fused difference", numberSpan(entry.fused_difference),
              make("div", {class: "quiet"}, "largest difference from the fused run")));
  } else {
    facts.append(row("size", sizeOfLeaf(entry)));
  }
  parts.push(facts);
  if (op) parts.push(inputList(item));
  item.outputs.forEach((value, o) => parts.push(...valueDetails(item, value, o)));
  parts.push(consumerList(item), overSteps());
  return parts.filter(Boolean);
}

function sizeOfLeaf(leaf) {
  const count = (leaf.shape ?? []).reduce((a, b) => a * b, 1), each = kDtypeBytes[leaf.dtype];
  return `${whole(count)} ${count === 1 ? "entry" : "entries"}${
      each ? ", " + bytes(count * each) : ""}`;
}

function inputList(item) {
  const list = item.inputs.map(({source, output}, i) => {
    if (!source) return make("li", {class: "quiet"}, `input ${i}: none given`);
    const value = source.outputs[output];
    return make(
        "li", null,
        make(
            "span", {class: "quiet"},
            source.kind === "op" ? "made by " : (source.entry.kind ?? "leaf") + " "),
        nodeLink(source, source.key + (source.outputs.length > 1 ? `[${output}]` : "")), " ",
        make("span", {class: "quiet"}, shapeText(value?.shape)));
  });
  return make(
      "section", {id: "inputs"}, make("h3", null, "Inputs"),
      list.length ? make("ol", {class: "links", start: 0}, list) :
                    make("p", {class: "quiet"}, "none"));
}

function consumerList(item) {
  const {consumers} = item;
  return make(
      "section", {id: "consumers"}, make("h3", null, `Used by ${whole(consumers.length)}`),
      consumers.length === 0 ?
          make(
              "p", {class: "quiet"},
              item.kind === "op" ? "no recorded op: a result of the step, or unused" :
                                   "no recorded op") :
          longList(
              consumers,
              ({target, input, output}) => make(
                  "li", null, nodeLink(target),
                  make(
                      "span", {class: "quiet"},
                      ` as input ${input}${
                          item.outputs.length > 1 ? ", output " + output : ""}`))));
}

function valueDetails(item, value, o) {
  const name = item.kind === "op" ? (item.outputs.length > 1 ? `Output ${o}` : "Output") : "Value";
  const parts = [make(
      "h3", {class: "output-title"}, `${name} `,
      make("span", {class: "shape"}, `${shapeText(value.shape)} ${value.dtype ?? ""}`))];
  const kinds = [["value", value.value], ["gradient", value.gradient]];
  for (const [kind, numbers] of kinds)
    if (notFinite(numbers))
      parts.push(make(
          "p", {class: "loud"},
          numbers.non_finite > 0 ?
              `⚠ ${whole(numbers.non_finite)} of ${whole(numbers.count)} entries of the ${
                  kind} are not finite.` :
              `⚠ The ${kind} has figures that are not finite.`));
  parts.push(figureTable(kinds, o));
  const charts =
      kinds.filter(([, numbers]) => numbers?.histogram?.counts?.length)
          .map(
              ([kind, numbers]) => make(
                  "figure", {class: "histogram-box", "data-of": kind, "data-output": o},
                  histogramChart(
                      numbers.histogram, kind === "value" ? "forward" : "backward", kind),
                  make("figcaption", null, kind)));
  if (charts.length)
    parts.push(make("div", {class: "histograms"}, charts));
  else if (stepWithPictures() >= 0)
    parts.push(pictureNote());
  if (value.gradient?.image) parts.push(imageOf(value.gradient.image, "gradient"));
  if (value.value?.image) {
    const shown = make("details", null, make("summary", null, "the value as an image"));
    shown.addEventListener(
        "toggle",
        () => shown.children.length === 1 && shown.append(imageOf(value.value.image, "value")));
    parts.push(shown);
  }
  return parts;
}

// Pages of several steps keep histograms and images of one; -1 when the step shown has its own.
function stepWithPictures() {
  const has = (step) => step.ops.some((op) => op.outputs.some((v) => v.value?.histogram));
  return has(page.model.step) ? -1 : page.record.steps.findIndex(has);
}

function pictureNote() {
  const at = stepWithPictures(), name = `step ${page.record.steps[at].step ?? at + 1}`;
  return make(
      "p", {class: "quiet"}, "Histograms and images were kept of ",
      make("button", {onclick: () => showStep(at)}, name), " only.");
}

function figureTable(kinds, o) {
  const given = kinds.filter(([, numbers]) => numbers);
  const table = make(
      "table", {class: "figures", "data-output": o},
      make(
          "thead", null,
          make(
              "tr", null, make("td"),
              kinds.map(
                  ([kind]) => make(
                      "th", {scope: "col", class: kind === "value" ? "forward" : "backward"},
                      kind)))));
  for (const name of kFigures)
    table.append(make(
        "tr", null, make("th", {scope: "row"}, kFigureNames[name] ?? name),
        kinds.map(
            ([kind, numbers]) => make(
                "td", null,
                !numbers ?
                    (given.length && name === "min" ?
                         make(
                             "span", {class: "quiet"},
                             kind === "gradient" ? "no gradient" : "none") :
                         "") :
                    numberSpan(
                        numbers[name],
                        ["zeros", "non_finite", "count"].includes(name) && numbers[name] != null ?
                            whole(numbers[name]) :
                            digits(numbers[name]),
                        {"data-of": kind, "data-figure": name, "data-output": o})))));
  return table;
}

// The selection's value and gradient over the steps, by key.
function overSteps() {
  const {steps} = page.record, id = page.selection;
  if (steps.length < 2 || id === null) return null;
  const node = selectedNode();
  const figure = (name) => steps.map((step, i) => {
    const found = modelAt(i).find(id), x = found ? found.figures[name] : null;
    return [step.step ?? i + 1, x === null || Number.isNaN(x) ? null : x];
  });
  const chart = (name, label, colour) => {
    const points = figure(name);
    const known = points.map(([, y]) => y).filter((y) => y !== null);
    if (known.length === 0) return null;
    return make("figure", null, plot([{name: label, colour, points}], {
                  height: 110,
                  xName: "step",
                  yName: label,
                  log: Math.min(...known) > 0 && Math.max(...known) > 20 * Math.min(...known),
                  label: `${label} over the steps`,
                  xTicks: points.length <= 10 ? points.map(([x]) => x) : null,
                  marks: [steps[page.stepIndex].step ?? page.stepIndex + 1],
                  pick: (x) => showStep(nearestStep(x))
                }));
  };
  const prefix = node?.kind === "scope" ? "largest " : "";
  const charts = [
    chart("rms", prefix + "rms of the value", "forward"),
    chart("gradient", prefix + "l2 of the gradient", "backward")
  ].filter(Boolean);
  return charts.length ?
      make("section", {id: "over-steps"}, make("h3", null, "Over the steps"), charts) :
      null;
}

function nearestStep(x) {
  const numbers = page.record.steps.map((step, i) => Math.abs((step.step ?? i + 1) - x));
  return numbers.indexOf(Math.min(...numbers));
}
