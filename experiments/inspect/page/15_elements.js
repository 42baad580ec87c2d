// Elements, numbers and links. Text enters the page as text nodes and attributes only, so that
// names out of the record show as they are.

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on"))
      element.addEventListener(name.slice(2), value);
    else
      element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat())
    if (child !== null && child !== undefined) element.append(child);
  return element;
}

function make(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function makeSvg(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

// Four significant digits.
function digits(x, many = 4) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "not finite";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size < 1e-3 || size >= 1e6 ? x.toExponential(many - 1) : x.toPrecision(many);
  return text.replace("e+", "e");
}

function whole(x) {
  return Number.isInteger(x) ? x.toLocaleString("en-US") : digits(x);
}

function seconds(x) {
  if (x === null || x === undefined) return "–";
  if (x === 0) return "0 s";
  return x < 1e-3 ? digits(x * 1e6) + " µs" : x < 1 ? digits(x * 1e3) + " ms" : digits(x) + " s";
}

function bytes(x) {
  if (x === null || x === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (x >= 1024 && unit + 1 < units.length) (x /= 1024), ++unit;
  return (unit === 0 ? whole(x) : digits(x)) + " " + units[unit];
}

function shapeText(shape) {
  return !Array.isArray(shape) ? "?" : shape.length === 0 ? "scalar" : shape.join("×");
}

// A number as shown, with all its digits in the title and for programs in data-value.
function numberSpan(x, text = digits(x), attributes = {}) {
  const full = x === null || x === undefined ? "not finite" : String(x);
  return make(
      "span", {
        class: "number",
        title: full,
        "data-value": x === null || x === undefined ? "null" : full,
        ...attributes
      },
      text);
}

// A name that may break after a dot or slash. Its text is the name.
function breakable(text) {
  return text.split(/(?<=[./])/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

// A link to an op, a leaf or a scope. It is a true link, so it can be copied and opened by
// keyboard.
function nodeLink(node, text = titleOf(node)) {
  return make(
      "a", {class: "node-link", href: hashOf(node), "data-key": idOf(node), title: titleOf(node)},
      breakable(shorten(text, 400)));
}

function hashOf(node) {
  return "#" + encodeURIComponent(idOf(node));
}

// Long lists show their first entries and a button for the others.
function longList(entries, row, tag = "ul", most = 40) {
  const list = make(tag, {class: "long-list"}, entries.slice(0, most).map(row));
  if (entries.length > most) {
    const more = make(
        "button", {
          class: "more",
          onclick: () => {
            more.parentElement.remove();
            list.append(...entries.slice(most).map(row));
          }
        },
        `show ${whole(entries.length - most)} more`);
    list.append(
        tag === "ul" ? make("li", null, more) : make("tr", null, make("td", {colspan: 9}, more)));
  }
  return list;
}

function announce(text) {
  byId("announce").textContent = text;
}
