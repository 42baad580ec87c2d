// One step as the page uses it: ops and leaves as items, who consumes whom, the tree of scopes, and
// for every item and scope what colours and sums are made of.

// Bytes of an entry; the size of a leaf is not in the record.
const kDtypeBytes = {
  float64: 8,
  int64: 8,
  uint64: 8,
  float32: 4,
  int32: 4,
  uint32: 4,
  bfloat16: 2,
  float16: 2,
  int8: 1,
  uint8: 1,
  bool: 1,
};

class StepModel {
  constructor(step) {
    this.step = step;
    this.items = [];  // ops in order of recording, then leaves
    this.byKey = new Map();
    this.scopes = new Map();
    this.root = this.scopeAt("");
    step.ops.forEach((op, i) => this.addItem("op", op, i, op.outputs));
    step.leaves.forEach((leaf, i) => this.addItem("leaf", leaf, i, [leaf]));
    this.opCount = step.ops.length;
    this.connect();
    this.sortScope(this.root);
    this.median = medianOf(
        this.items.filter((item) => item.kind === "op").map((item) => item.figures.gradient));
  }

  addItem(kind, entry, index, outputs) {
    const item = {
      kind,
      entry,
      index,
      outputs,
      id: this.items.length,
      key: entry.key,
      scope: this.scopeAt(String(entry.scope ?? "")),
      order: index,
      inputs: [],
      consumers: [],
      figures: figuresOf(kind, entry, outputs),
    };
    this.items.push(item);
    this.byKey.set(item.key, item);
    item.scope.items.push(item);
  }

  scopeAt(path) {
    const known = this.scopes.get(path);
    if (known) return known;
    const cut = path.lastIndexOf(".");
    const scope = {
      kind: "scope",
      path,
      name: path.slice(cut + 1),
      parent: null,
      depth: 0,
      children: [],
      items: [],
      order: Infinity,
      leafOrder: Infinity,
      opCount: 0,
      members: [],
      figures: null,
    };
    this.scopes.set(path, scope);
    if (path !== "") {
      scope.parent = this.scopeAt(cut < 0 ? "" : path.slice(0, cut));
      scope.depth = scope.parent.depth + 1;
      scope.parent.children.push(scope);
    }
    return scope;
  }

  connect() {
    const leaf = (o) => this.items[this.opCount + o];
    for (let t = 0; t < this.opCount; ++t) {
      const target = this.items[t];
      target.entry.inputs.forEach(([i, o], input) => {
        const source = i >= 0 ? this.items[i] : i === -1 ? leaf(o) : null;
        const output = i >= 0 ? o : 0;
        target.inputs.push({source, output});
        source?.consumers.push({target, input, output});
      });
    }
    // A leaf stands just before the first op that uses it.
    for (const item of this.items)
      if (item.kind === "leaf")
        item.order = item.consumers.length ? item.consumers[0].target.order - 0.5 :
                                             this.opCount + item.index;
  }

  // Children and items in order of recording, and the figures of a scope from what it holds. A
  // scope without ops (parameters only) stands where its first leaf stands.
  sortScope(scope) {
    const all = {gradient: null, smallest: null, rms: null, seconds: 0, bytes: 0, nonFinite: false};
    for (const child of scope.children) this.sortScope(child);
    for (const node of [...scope.children, ...scope.items]) {
      if (node.kind === "op") scope.order = Math.min(scope.order, node.order);
      if (node.kind === "leaf") scope.leafOrder = Math.min(scope.leafOrder, node.order);
      if (node.kind === "scope" && node.opCount > 0)
        scope.order = Math.min(scope.order, node.order);
      if (node.kind === "scope") scope.leafOrder = Math.min(scope.leafOrder, node.leafOrder);
      scope.opCount += node.kind === "op" ? 1 : node.kind === "scope" ? node.opCount : 0;
      all.gradient = larger(all.gradient, node.figures.gradient);
      all.rms = larger(all.rms, node.figures.rms);
      all.smallest = smaller(all.smallest, node.figures.smallest);
      all.seconds += node.figures.seconds ?? 0;
      all.bytes += node.figures.bytes ?? 0;
      all.nonFinite ||= node.figures.nonFinite;
    }
    if (scope.order === Infinity) scope.order = scope.leafOrder;
    scope.figures = all;
    scope.members = [...scope.children, ...scope.items].sort((a, b) => a.order - b.order);
  }

  // An op, a leaf or a scope; "key[1]" is output 1 of an op, and "scope:" keeps a scope apart from
  // a leaf of the same name.
  find(key) {
    if (key.startsWith("scope:") && this.scopes.has(key.slice(6)))
      return this.scopes.get(key.slice(6));
    return this.byKey.get(key) ?? this.byKey.get(key.replace(/\[\d+\]$/, "")) ??
        this.scopes.get(key) ?? null;
  }

  // First op in order of recording with a value that is not finite; and, since gradients are made
  // from the end, the last op with such a gradient.
  firstNonFinite() {
    const ops = this.items.filter((item) => item.kind === "op");
    const bad = (kind) => (item) => item.outputs.some((v) => notFinite(v[kind]));
    return {
      leaves: this.items.filter((item) => item.kind === "leaf" && bad("value")(item)),
      values: ops.filter(bad("value")),
      gradients: ops.filter(bad("gradient")).reverse(),
    };
  }

  sameGraph(other) {
    const a = this.step, b = other.step;
    return a.ops.length === b.ops.length && a.leaves.length === b.leaves.length &&
        a.ops.every(
            (op, i) => op.key === b.ops[i].key && op.scope === b.ops[i].scope &&
                String(op.inputs) === String(b.ops[i].inputs)) &&
        a.leaves.every((leaf, i) => leaf.key === b.leaves[i].key);
  }
}

function idOf(node) {
  return node.kind === "scope" ? "scope:" + node.path : node.key;
}

function titleOf(node) {
  return node.kind !== "scope" ? node.key : node.path === "" ? "the whole step" : node.path;
}

function nameOf(scope) {
  return scope.name === "" ? "(no name)" : scope.name;
}

// "3" alone says nothing: the name before it comes along.
function shortName(node) {
  if (node.kind === "scope") {
    if (node.path === "") return "step";
    return /^\d+$/.test(node.name) && node.parent.path !== "" ? node.parent.name + "." + node.name :
                                                                nameOf(node);
  }
  const {key, scope: {path}} = node;
  const rest = key.startsWith(path) ? key.slice(path.length) : key;
  return (path === "" || /^[./]/.test(rest) ? rest.replace(/^[./](?=.)/, "") : key) || key;
}

function notFinite(numbers) {
  return !!numbers &&
      ((numbers.non_finite ?? 0) > 0 || (numbers.l2 === null && numbers.count !== 0));
}

// l2 and rms of a value with entries that are not finite are NaN here, whatever the finite rest
// gives.
function figureOf(numbers, name) {
  if (!numbers) return null;
  return notFinite(numbers) || numbers[name] === undefined || numbers[name] === null ?
      NaN :
      numbers[name];
}

function figuresOf(kind, entry, outputs) {
  const gradients = outputs.map((v) => figureOf(v.gradient, "l2")).filter((x) => x !== null);
  return {
    gradient: gradients.reduce(larger, null),
    smallest: gradients.filter((x) => x > 0).reduce(smaller, null),
    rms: outputs.map((v) => figureOf(v.value, "rms")).reduce(larger, null),
    seconds: kind === "op" ? (entry.seconds ?? 0) + (entry.backward_seconds ?? 0) : null,
    bytes: kind === "op" ? entry.bytes ?? 0 : null,
    nonFinite: outputs.some((v) => notFinite(v.value) || notFinite(v.gradient)),
  };
}

// NaN wins: what is not finite must not hide behind a finite number.
function larger(a, b) {
  if (a === null) return b;
  if (b === null) return a;
  return Math.max(a, b);
}

function smaller(a, b) {
  if (a === null || Number.isNaN(a)) return b;
  if (b === null || Number.isNaN(b)) return a;
  return Math.min(a, b);
}

function medianOf(numbers) {
  const sorted = numbers.filter((x) => x !== null && x > 0).sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : null;
}
