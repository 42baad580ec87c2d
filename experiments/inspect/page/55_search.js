// Search by name: a combobox over ops, leaves and scopes.

const kMostResults = 200;

const search = {
  found: [],
  active: 0
};

function startSearch() {
  const input = byId("search"), list = byId("search-results");
  input.addEventListener("input", showResults);
  input.addEventListener("focus", () => input.value && showResults());
  input.addEventListener("blur", () => setTimeout(hideResults, 150));
  input.addEventListener("keydown", searchKey);
  list.addEventListener("pointerdown", (event) => event.preventDefault());
  list.addEventListener("click", (event) => {
    const index = event.target.closest("[data-index]")?.dataset.index;
    if (index !== undefined) takeResult(Number(index));
  });
  listen("step", hideResults);
}

// All words of the query must occur in the name. The name itself comes first, then names where the
// query starts a part, then others; shorter ones before longer ones.
function searchNames(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return [];
  const whole = words.join(" "), found = [];
  const {model} = page;
  for (const node of [...model.items, ...model.scopes.values()]) {
    const name = titleOf(node).toLowerCase();
    if (node.path === "" || !words.every((word) => name.includes(word))) continue;
    const at = name.indexOf(words[0]), starts = at === 0 || /[./#_\s]/.test(name[at - 1] ?? "");
    found.push({
      node,
      rank: name === whole     ? 0 :
          name.endsWith(whole) ? 1 :
          starts               ? 2 :
                                 3,
      length: name.length
    });
  }
  found.sort((a, b) => a.rank - b.rank || a.length - b.length || a.node.order - b.node.order);
  return found.map(({node}) => node);
}

function showResults() {
  const input = byId("search"), list = byId("search-results");
  const start = input.value.replace(/\[\d+\]$/, "");
  const exact = page.model.find(input.value);
  search.found = searchNames(start);
  if (search.found.length === 0 && exact) search.found = [exact];
  search.active = 0;
  list.replaceChildren(
      ...search.found.slice(0, kMostResults)
          .map(
              (node, i) => make(
                  "div", {
                    id: "result-" + i,
                    role: "option",
                    "data-index": i,
                    "data-key": idOf(node),
                    "aria-selected": String(i === 0),
                    title: titleOf(node),
                  },
                  make(
                      "span", {class: "kind"},
                      node.kind === "leaf" ? node.entry.kind ?? "leaf" : node.kind),
                  shorten(titleOf(node), 300))));
  if (input.value.trim() !== "")
    list.append(make(
        "div", {class: "result-count"},
        search.found.length === 0 ?
            "Nothing has this name." :
            search.found.length > kMostResults ?
            `${whole(search.found.length)} names, the first ${kMostResults} shown` :
            `${search.found.length} ${search.found.length === 1 ? "name" : "names"}`));
  list.hidden = input.value.trim() === "";
  input.setAttribute("aria-expanded", String(!list.hidden));
  markResult();
}

function hideResults() {
  byId("search-results").hidden = true;
  byId("search").setAttribute("aria-expanded", "false");
  byId("search").removeAttribute("aria-activedescendant");
}

function markResult() {
  const options = byId("search-results").querySelectorAll("[role=option]");
  options.forEach((option, i) => option.setAttribute("aria-selected", String(i === search.active)));
  options[search.active]?.scrollIntoView({block: "nearest"});
  if (options.length)
    byId("search").setAttribute("aria-activedescendant", "result-" + search.active);
}

function takeResult(index) {
  const node = search.found[index];
  if (!node) return;
  hideResults();
  showTab("graph");
  select(node);
}

function searchKey(event) {
  const many = Math.min(search.found.length, kMostResults);
  if (event.key === "Escape") {
    hideResults();
    graph.canvas.focus();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (byId("search-results").hidden)
      showResults();
    else if (many)
      search.active = (search.active + (event.key === "ArrowDown" ? 1 : many - 1)) % many;
    markResult();
  } else if (event.key === "Enter") {
    if (byId("search-results").hidden) showResults();
    takeResult(search.active);
  } else {
    return;
  }
  event.preventDefault();
}
