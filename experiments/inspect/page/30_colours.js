// What boxes are coloured by, the scales, and the legend.

// Stops from small to large. Sequential: matplotlib's viridis at nine places; diverging: blue,
// neutral, red.
const kSequential = [
  "#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"
];
const kDiverging = {
  light: ["#08458f", "#3f85c6", "#a3cbe6", "#f1f1ee", "#f3b499", "#d35b4a", "#8f0f22"],
  dark: ["#8cc4ff", "#4a8fdb", "#2b5687", "#33363c", "#8a4534", "#d9664f", "#ffb09b"],
};
const kNotFinite = "#ff00d4";

const kColourings = [
  {
    id: "gradient",
    name: "gradient norm",
    unit: "l2 of the gradient, log scale",
    of: (n) => n.figures.gradient,
    log: true
  },
  {
    id: "ratio",
    name: "vanishing / exploding",
    unit: "gradient l2 ÷ median of the step's ops, log scale",
    log: true,
    diverging: true,
    of: (n, model) => extremeRatio(n.figures, model.median),
  },
  {
    id: "rms",
    name: "forward rms",
    unit: "rms of the value, log scale",
    of: (n) => n.figures.rms,
    log: true
  },
  {
    id: "time",
    name: "time",
    unit: "forward and backward; scopes: sum; log scale",
    of: (n) => n.figures.seconds,
    log: true,
    show: seconds,
    sum: true
  },
  {
    id: "memory",
    name: "memory",
    unit: "bytes of outputs; scopes: sum; log scale",
    of: (n) => n.figures.bytes,
    log: true,
    show: bytes,
    sum: true
  },
];

// A scope shows what is farthest from the median, up or down.
function extremeRatio({gradient, smallest}, median) {
  if (gradient === null || median === null) return null;
  if (!(gradient > 0)) return gradient;
  const most = gradient / median, least = smallest === null ? most : smallest / median;
  return Math.abs(Math.log(most)) >= Math.abs(Math.log(least)) ? most : least;
}

// The colouring of a step: `colourOf(node)` is a CSS colour, `domain` what the legend shows.
class Colouring {
  constructor(id, model, dark) {
    this.kind = kColourings.find((c) => c.id === id) ?? kColourings[0];
    this.model = model;
    this.dark = dark;
    this.stops =
        (this.kind.diverging ? kDiverging[dark ? "dark" : "light"] : kSequential).map(rgbOf);
    this.none = dark ? "#2c3037" : "#eceef1";
    this.zero = dark ? "#4a4f59" : "#c6cad1";
    const nodes = this.kind.sum ? [...model.items, ...model.scopes.values()] : model.items;
    const known = nodes.map((n) => this.kind.of(n, model))
                      .filter((x) => x !== null && x > 0 && Number.isFinite(x))
                      .sort((a, b) => a - b);
    // Gradients of 1e-24 must not take the colours of all others: the scale leaves out 2 % at
    // either end (but no sum at the upper one) and has eight decades at most.
    const at = (part) => (known.length ? known[Math.round(part * (known.length - 1))] : 1);
    let low = at(0.02), high = at(this.kind.sum ? 1 : 0.98);
    low = Math.max(low, this.kind.diverging ? 0 : high * 1e-8);
    if (this.kind.diverging) {
      const decades = Math.min(
          8,
          Math.max(2, Math.ceil(Math.max(Math.abs(Math.log10(low)), Math.abs(Math.log10(high))))));
      [low, high] = [10 ** -decades, 10 ** decades];
    } else if (high / low < 1.5) {
      [low, high] = [low / 2, high * 2];
    }
    this.domain = [low, high];
    this.beyond = [at(0) < low, at(1) > high];
  }

  // 0 to 1 along the scale; null: nothing to show.
  place(value) {
    const [low, high] = this.domain.map(Math.log);
    return Math.min(1, Math.max(0, (Math.log(value) - low) / (high - low)));
  }

  colourOf(node) {
    const value = this.kind.of(node, this.model);
    if (Number.isNaN(value)) return kNotFinite;
    if (value === null) return this.none;
    if (value === 0) return this.zero;
    return colourAt(this.stops, this.place(value));
  }
}

function rgbOf(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function colourAt(stops, place) {
  const at = place * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(at)),
        part = at - i;
  return "#" +
      stops[i]
          .map((c, k) => Math.round(c + part * (stops[i + 1][k] - c)).toString(16).padStart(2, "0"))
          .join("");
}

// Black or white, whichever is easier to read on the colour (relative luminance of WCAG).
const inkCache = new Map();
function inkOn(colour) {
  if (!inkCache.has(colour)) {
    const [r, g, b] = rgbOf(colour).map(
        (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    inkCache.set(colour, 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#101214" : "#ffffff");
  }
  return inkCache.get(colour);
}

function gradientCss(stops) {
  return `linear-gradient(to right, ${stops.map((c) => `rgb(${c.join(",")})`).join(", ")})`;
}

function fillLegend(element, colouring) {
  const {kind, domain, stops, beyond} = colouring, show = kind.show ?? ((x) => digits(x, 2));
  const end = (k) => (beyond[k] ? "≤≥"[k] + " " : "") + show(domain[k]);
  const times = domain[1] < 1e5 ? whole(domain[1]) : domain[1].toExponential(0).replace("e+", "e");
  const bar = make("span", {class: "legend-bar"});
  bar.style.background = gradientCss(stops);
  const swatch = (colour, text) => {
    const square = make("span", {class: "swatch"});
    square.style.background = colour;
    return make("span", {class: "legend-part"}, square, text);
  };
  element.replaceChildren(
      make(
          "span", {class: "legend-part", title: kind.unit},
          kind.diverging ? `vanishing ÷${times}` : end(0), bar,
          kind.diverging ? `×${times} exploding` : end(1)),
      swatch(colouring.zero, "0"),
      swatch(
          colouring.none,
          kind.sum              ? "not measured" :
              kind.id === "rms" ? "none" :
                                  "no gradient"),
      ...(kind.sum ? [] : [swatch(kNotFinite, "not finite")]),
      make("span", {class: "legend-unit"}, kind.unit));
}
