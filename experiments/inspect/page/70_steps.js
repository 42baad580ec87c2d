// Training steps: slider, figures, curves, and the first values and gradients that are not finite.

function startSteps() {
  const {steps} = page.record, slider = byId("step-slider");
  byId("step-control").hidden = steps.length < 2;
  slider.max = String(steps.length - 1);
  slider.addEventListener("input", () => showStep(Number(slider.value)));
  byId("step-before").addEventListener("click", () => showStep(page.stepIndex - 1));
  byId("step-after").addEventListener("click", () => showStep(page.stepIndex + 1));
  for (const event of ["step"]) listen(event, drawSteps);
  listen("step", showNonFinite);
}

function drawSteps() {
  const {steps} = page.record, step = steps[page.stepIndex], slider = byId("step-slider");
  slider.value = String(page.stepIndex);
  slider.setAttribute("aria-valuetext", `step ${step.step ?? page.stepIndex + 1}`);
  const figure = (name, value) => [make("dt", null, name), make("dd", null, value)];
  const number = (name, id) =>
      (step[id] === undefined ?
           [] :
           figure(
               name, numberSpan(step[id], id === "seconds" ? seconds(step[id]) : digits(step[id]), {
                 "data-figure": id
               })));
  byId("step-figures")
      .replaceChildren(
          ...figure(
              "step",
              numberSpan(
                  step.step ?? page.stepIndex + 1, whole(step.step ?? page.stepIndex + 1),
                  {"data-figure": "step"})),
          ...number("loss", "loss"), ...number("gradient norm", "gradient_norm"),
          ...number("learning rate", "learning_rate"), ...number("time", "seconds"));
  const curves = byId("step-curves");
  curves.replaceChildren();
  if (steps.length < 2) return;
  for (const [id, name, colour] of [
           ["loss", "loss", "forward"], ["gradient_norm", "gradient norm", "backward"]])
    curves.append(sparkline(id, name, colour));
}

// Small enough for the strip on top: a line, its ends in numbers, the step as a mark.
function sparkline(id, name, colour) {
  const {steps} = page.record, width = 120, height = 30;
  const values = steps.map((step) => (Number.isFinite(step[id]) ? step[id] : null)),
        known = values.filter((v) => v !== null);
  if (known.length === 0) return make("span");
  const low = Math.min(...known), high = Math.max(...known);
  const px = (i) => 3 + (i / (steps.length - 1)) * (width - 6),
        py = (v) => height - 4 - ((v - low) / (high - low || 1)) * (height - 8);
  const chart = makeSvg("svg", {
    class: "sparkline",
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    role: "img",
    "aria-label": `${name} over ${steps.length} steps, from ${digits(known[0])} to ${
        digits(known[known.length - 1])}`
  });
  let path = "", open = false;
  values.forEach((v, i) => {
    if (v !== null) path += `${open ? "L" : "M"}${px(i).toFixed(1)} ${py(v).toFixed(1)}`;
    open = v !== null;
  });
  chart.append(
      makeSvg("path", {class: "curve " + colour, d: path}),
      makeSvg(
          "line",
          {class: "mark", x1: px(page.stepIndex), x2: px(page.stepIndex), y1: 0, y2: height}));
  if (values[page.stepIndex] !== null)
    chart.append(makeSvg(
        "circle",
        {class: "dot " + colour, cx: px(page.stepIndex), cy: py(values[page.stepIndex]), r: 3}));
  chart.addEventListener("click", (event) => {
    const rect = chart.getBoundingClientRect();
    showStep(Math.round(
        (((event.clientX - rect.left) / rect.width) * width - 3) / (width - 6) *
        (steps.length - 1)));
  });
  return make(
      "figure", {class: "spark", "data-curve": id}, chart,
      make(
          "figcaption", null, name,
          make("span", {class: "quiet"}, ` ${digits(low, 3)} – ${digits(high, 3)}`)));
}

// Values are made from the front, gradients from the end: the first of each is where to look.
function showNonFinite() {
  const box = byId("non-finite"), {leaves, values, gradients} = page.model.firstNonFinite();
  box.hidden = leaves.length + values.length + gradients.length === 0;
  if (box.hidden) return;
  const part = (name, items) => items.length === 0 ?
      null :
      make(
          "div", {class: "first"}, make("strong", null, name), " ",
          nodeLink(items[0], shorten(items[0].key, 90)),
          items.length > 1 ? expandable(items.slice(1)) : null);
  box.replaceChildren(
      make("span", {class: "loud"}, "⚠ First non-finite "),
      ...[part("leaf", leaves),
          part("value (forward)", values),
          part("gradient (backward)", gradients),
          gradients.length ?
              null :
              make(
                  "span", {class: "quiet"},
                  "Every gradient is finite: these may be the infinities of a mask."),
  ].filter(Boolean));
}

function expandable(items) {
  return make(
      "details", {class: "others"}, make("summary", null, `and ${whole(items.length)} more`),
      longList(items, (item) => make("li", null, nodeLink(item, shorten(item.key, 200)))));
}
