// The lesson on kernelized attention with random Maclaurin features (RMFA): each part is a heading,
// sentences that describe, and figures of the record by mode. Formulas follow nn/README.md.

// A formula: _ and ^ put the letters after them below and above the line.
function math(text) {
  return make("span", {class: "math"}, raised(text));
}

function raised(text) {
  return text.split(/([_^][A-Za-z0-9]+)/)
      .filter(Boolean)
      .map(
          (part) =>
              (/^[_^]./.test(part) ? make(part[0] === "_" ? "sub" : "sup", null, part.slice(1)) :
                                     part));
}

// A paragraph whose formulas stand in braces.
function paragraph(...texts) {
  const parts = texts.join("").split(/[{}]/);
  return make("p", null, parts.map((part, n) => (n % 2 ? math(part) : part)));
}

function displayed(...lines) {
  return make(
      "p", {class: "formula"},
      lines.map((line, n) => [n ? make("br") : null, raised(line)]).flat(2));
}

function kernelWords(a) {
  return [
    paragraph(
        "Query i looks at key j with the weight {w_ij = K(q_i, k_j) / Σ_l K(q_i, k_l)}, and its ",
        "output is {Σ_j w_ij v_j}. The kernel is a function of the dot product alone:"),
    displayed(
        "K(q_i, k_j) = f(t_ij)", "t_ij = τ q_i·k_j / √d",
        `f(t) = ${a.formula ?? "?"}   (kernel ${a.kernel ?? "?"})`),
    paragraph(
        `Here {τ = ${digits(a.logit_scale)}} and {d = ${a.head_dim}}. The maps show head ${
            a.head} `,
        `of sentence ${a.sentence}: queries from top to bottom, keys from left to right. `,
        a.causal ? "A query sees itself and what comes before it; hidden pairs are hatched." :
                   "Every query sees every key."),
  ];
}

function kernelMaps(a, m) {
  return [
    mapOf(a, m, "logits", "t, the argument of f", commonScale([m.logits], true)),
    mapOf(a, m, "exact", "K = f(t), exact", commonScale([m.exact])),
  ];
}

function drawWords() {
  return [
    paragraph(
        "f is a power series with coefficients that are not negative, {f(t) = Σ_N a_N t^N}. A ",
        "feature of degree N is a product of N random projections, ",
        "{φ(x) = w · (ω_1·x)(ω_2·x)…(ω_N·x)}, where the entries of every ω are +1 or −1 by chance. ",
        "Since {E[(ω·q)(ω·k)] = q·k}, the product {φ(q)φ(k)} is right on average for its degree, ",
        "and all features together for the kernel:"),
    displayed("E[Φ(q_i)·Φ(k_j)] = K(q_i, k_j)"),
    paragraph(
        "What this buys: {Σ_j Φ(q_i)·Φ(k_j) v_j = Φ(q_i)·(Σ_j Φ(k_j) v_j)}, and the sum in brackets ",
        "is made once for all queries. The cost grows with the length, not with its square. What ",
        "it costs is the noise of the draw, which the rest of this page shows."),
  ];
}

function estimateWords() {
  return [paragraph(
      "Left the kernel, beside it what this one draw makes of it, on the same scale of colours; ",
      "then estimate − exact. The difference is the noise of one draw: its expectation is zero, and ",
      "another draw would have another pattern. In the last plot every pair is a dot at its t: ",
      "without noise, the dots of the estimate would lie on those of f.")];
}

function estimateMaps(a, m) {
  const shared = commonScale([m.exact, m.estimate]);
  return [
    mapOf(a, m, "exact", "K, exact", shared),
    mapOf(a, m, "estimate", "Φ(q)·Φ(k), this draw", shared),
    mapOf(a, m, "difference", "estimate − exact", commonScale([m.difference], true)),
    scatter(m),
  ];
}

function weightWords() {
  return [
    paragraph(
        "Each row divided by its sum gives the weights. An estimate may be negative, and so may a ",
        "weight made from it. Numerator and denominator are right on average; their quotient is ",
        "not quite, because the average of a quotient is not the quotient of the averages."),
    paragraph(
        "The denominators decide how bad a draw can get: one near zero blows up its whole row. The ",
        "band is the exact denominator ± one standard deviation over the redraws."),
  ];
}

function weightMaps(a, m) {
  const shared = commonScale([m.exact_weights, m.estimated_weights]);
  return [
    mapOf(a, m, "exact_weights", "weights, exact", shared),
    mapOf(a, m, "estimated_weights", "weights, this draw", shared),
    denominatorPlot(m),
  ];
}

function degreeWords() {
  return [paragraph(
      "The exact kernel is a sum over degrees, {a_N t^N}, and so is the estimate. The table has root ",
      "mean squares over the visible pairs: what the degree adds exactly, what the features drawn ",
      "for it add, the error of this draw, and the error over the redraws. A degree that got no ",
      "feature in this draw is missed altogether: its error is the degree itself. Where |t| is ",
      "small, nearly all of the kernel is in the first degrees.")];
}

function redrawWords(a) {
  return [paragraph(
      `The same queries and keys with ${whole(a.redraws ?? 0)} fresh draws. Each is right on `,
      "average, so their mean comes near the exact kernel; what is left of the difference falls ",
      "with the root of their number. The deviation is what one draw is off by, pair by pair: ",
      "training that draws anew sees this noise in every step.")];
}

function redrawMaps(a, m) {
  if (!m.redraw) return [];
  const {mean, deviation, weights_deviation: weights} = m.redraw;
  const fromZero = (matrix) => ({...commonScale([matrix]), low: 0});
  return [
    mapOf(a, m, "mean", "mean over the redraws", commonScale([m.exact, m.estimate]), mean),
    mapOf(a, m, "deviation", "deviation of the estimate", fromZero(deviation), deviation),
    mapOf(a, m, "weights_deviation", "deviation of the weights", fromZero(weights), weights),
    redrawTable(a, m),
  ];
}

function modeWords() {
  return [paragraph(
      "preSBN centres and scales q and k and gives each row the norm 1, so that {|t| ≤ τ/√d}: the ",
      "series stays in its radius, and a small t puts nearly all of the kernel into the first ",
      "degrees. The price is a kernel that is nearly flat, with attention close to the mean of the ",
      "values unless τ is larger. postSBN scales the output afterwards. What it did to the noise ",
      "here is in the table.")];
}

// A part has words, figures by mode, and `once` a figure for all modes.
const kLesson = [
  {id: "kernel", title: "A kernel instead of the softmax", words: kernelWords, figures: kernelMaps},
  {id: "draw", title: "Random features instead of the kernel", words: drawWords, once: drawTable},
  {
    id: "estimate",
    title: "One draw's estimate of the kernel",
    words: estimateWords,
    figures: estimateMaps,
  },
  {id: "weights", title: "Weights and denominators", words: weightWords, figures: weightMaps},
  {
    id: "degrees",
    title: "Degree by degree",
    words: degreeWords,
    figures: (a, m) => [degreeTable(a, m), degreeBars(m)],
  },
  {
    id: "redraws",
    title: "What other draws would have given",
    words: redrawWords,
    figures: redrawMaps,
  },
  {
    id: "modes",
    title: "What ppSBN changes",
    words: modeWords,
    once: modeTable,
    needsModes: true,
  },
];
