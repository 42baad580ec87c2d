// The tab of kernelized attention: choice of attention and mode, the lesson's parts, and the
// numbers of the pair under the cursor.

const attentionTab = {
  index: 0,
  mode: 0,
  beside: false,
  drawn: false
};

function startAttention() {
  const {attentions} = page.record;
  byId("tab-attention").hidden = attentions.length === 0;
  if (attentions.length === 0) return;
  chooseAttention(0);
  listen("tab", () => page.tab === "attention" && !attentionTab.drawn && drawAttention());
  listen("theme", () => {
    attentionTab.drawn = false;
    if (page.tab === "attention") drawAttention();
  });
}

function chooseAttention(index) {
  attentionTab.index = index;
  attentionTab.mode =
      Math.max(0, page.record.attentions[index].modes.findIndex((m) => m.used_by_the_model));
}

function drawAttention() {
  const {attentions} = page.record, a = attentions[attentionTab.index],
        view = byId("view-attention"), scroll = view.scrollTop;
  attentionTab.drawn = true;
  cursor.maps = [];
  Object.assign(cursor, {i: -1, j: -1, move: () => tellPair(a)});
  const modes = attentionTab.beside ? a.modes : [a.modes[attentionTab.mode]];
  const choice = make(
      "select", {
        id: "attention-choice",
        onchange: (event) => {
          chooseAttention(Number(event.target.value));
          drawAttention();
          byId("attention-choice").focus();
        }
      },
      attentions.map(
          (one, n) => make(
              "option", {value: n, selected: n === attentionTab.index},
              `${one.name}, head ${one.head}, sentence ${one.sentence}`)));
  const pick = (n, name) => make(
      "button", {
        class: "mode",
        "aria-pressed": String(
            n === "both" ? attentionTab.beside : !attentionTab.beside && n === attentionTab.mode),
        "data-mode": n,
        onclick: () => {
          attentionTab.beside = n === "both";
          if (n !== "both") attentionTab.mode = n;
          drawAttention();
          view.querySelector(`[data-mode="${n}"]`).focus();
        }
      },
      name);
  view.replaceChildren(
      make(
          "div", {id: "attention-bar"}, make("label", null, "Attention ", choice),
          make(
              "span", {class: "group", role: "group", "aria-label": "Mode"},
              a.modes.map(
                  (m, n) => pick(n, m.name + (m.used_by_the_model ? " (used by the model)" : ""))),
              a.modes.length > 1 ? pick("both", "side by side") : null),
          make(
              "div", {id: "pair", role: "status", "aria-live": "polite"},
              "Hover a map, or move over one with the arrow keys, to see a pair's numbers.")),
      make(
          "div", {id: "lesson"},
          kLesson.filter((part) => !part.needsModes || a.modes.length > 1)
              .map((part, n) => lessonPart(part, n + 1, a, modes))));
  view.scrollTop = scroll;
}

function lessonPart(part, number, a, modes) {
  const several = modes.length > 1 && part.figures;
  return make(
      "section", {class: "part", id: "lesson-" + part.id},
      make("h2", null, `${number}. ${part.title}`), make("div", {class: "words"}, part.words(a)),
      part.once ? part.once(a) : null,
      part.figures ? make(
                         "div", {class: several ? "modes several" : "modes"},
                         modes.map(
                             (m) => make(
                                 "div", {class: "mode-figures", "data-mode-name": m.name},
                                 several ? make("h3", null, m.name) : null,
                                 make("div", {class: "figures-row"}, part.figures(a, m))))) :
                     null);
}

function tellPair(a) {
  const {i, j} = cursor,
            quote = (names, n) =>
                (names?.[n] === undefined ? "" : ` “${shorten(String(names[n]), 40)}”`);
  const modes = attentionTab.beside ? a.modes : [a.modes[attentionTab.mode]];
  const at = (matrix) => matrix?.values?.[i * matrix.columns + j];
  const text = (matrix) => {
    const x = at(matrix);
    return x === null || x === undefined ? numberSpan(null, "hidden") : numberSpan(x);
  };
  byId("pair").replaceChildren(
      make(
          "strong", null,
          `query ${i}${quote(a.query_tokens, i)} → key ${j}${quote(a.key_tokens, j)}`),
      ...modes.flatMap(
          (m) =>
              [modes.length > 1 ? make("em", null, m.name + ": ") : " ", "t ", text(m.logits),
               " · K exact ", text(m.exact), ", estimate ", text(m.estimate), ", difference ",
               text(m.difference), " · weight exact ", text(m.exact_weights), ", estimate ",
               text(m.estimated_weights),
               ...(m.redraw ? [" · deviation of a draw ", text(m.redraw.deviation)] : [])]));
}
