// Lays out one frame, from left to right: layers by the longest path over the edges that go forward
// in order of recording; the order in a layer by neighbours' mean positions; heights by the same
// means without overlaps. A wire over several layers passes each at a vertex of its own, so that it
// runs between boxes.

const kLongestChain =
    60;  // a wire over more layers is drawn straight: bends would cost more than they show

function layoutFrame(frame) {
  for (const member of frame.members)
    if (member.kind === "frame") layoutFrame(member);
  // Leaves come before whatever uses them, first or again.
  const leafy = (m) => m.node.kind === "leaf" || (m.node.kind === "scope" && m.node.opCount === 0);
  frame.members = [...frame.members.filter(leafy), ...frame.members.filter((m) => !leafy(m))];
  const layers = assignLayers(frame);
  const columns = makeColumns(frame, layers);
  orderColumns(columns);
  stackColumns(columns);
  sizeFrame(frame, columns);
}

// Returns the number of layers. What no wire enters stands as late as its consumers allow: a
// parameter stands beside the op that uses it.
function assignLayers(frame) {
  const {members} = frame;
  members.forEach(
      (m, rank) => Object.assign(m, {rank, layer: 0, after: [], floating: true, again: []}));
  const wires = [...frame.wires.values()];
  for (const {from, targets} of wires)
    for (const [target, edges] of targets)
      if (from === null)
        target.floating = false;
      else if (from.rank < target.rank)
        from.after.push(target);
      else
        target.again.push({
          from,
          order: Math.min(...edges.flatMap((e) => e.uses.map((use) => use.target.order)))
        });
  // A scope used again later (a shared embedding): what it hands on from then on comes after what
  // it was used on, although that edge goes backward and orders nothing itself.
  for (const {from, targets} of wires)
    for (const [target, edges] of from?.again.length ? targets : []) {
      const last = Math.max(...edges.flatMap((e) => e.uses.map((use) => use.source.order)));
      for (const again of from.again)
        if (again.order <= last && again.from.rank < target.rank) again.from.after.push(target);
    }
  for (const m of members)
    for (const next of m.after) {
      next.layer = Math.max(next.layer, m.layer + 1);
      if (!m.floating) next.floating = false;
    }
  for (const m of [...members].reverse())
    if (m.floating && m.after.length) m.layer = Math.min(...m.after.map((next) => next.layer)) - 1;
  return members.reduce((most, m) => Math.max(most, m.layer + 1), 0);
}

// Columns 1 to `layers` hold the members; column 0 and the last one the places where wires cross
// the frame.
function makeColumns(frame, layers) {
  const columns = Array.from({length: layers + 2}, () => ({vertices: [], x: 0, width: 0}));
  const add = (column, node, h) => {
    const vertex = {node, column, h, y: 0, place: 0, left: [], right: []};
    columns[column].vertices.push(vertex);
    return vertex;
  };
  for (const m of frame.members) m.vertex = add(m.layer + 1, m, m.h);
  for (const wire of frame.wires.values()) runWire(frame, wire, columns, add);
  return columns;
}

function runWire(frame, wire, columns, add) {
  const {source, from, targets, out} = wire;
  const outOffset = (node) => (node.kind === "frame" ? node.outPorts.get(source.id) : node.h / 2);
  const inOffset = (node) => (node.kind === "frame" ? node.inPorts.get(source.id) : node.h / 2);
  const start = from ? from.vertex : add(0, null, 0);
  if (!from) start.enters = source.id;
  const join = (a, b, edge = null) => {
    const link = {
      wire,
      a,
      b,
      edge,
      straight: !a.node && !b.node,
      aOffset: a.node ? outOffset(a.node) : 0,
      bOffset: b.node ? inOffset(b.node) : 0,
    };
    frame.links.push(link);
    a.right.push(link);
    b.left.push(link);
  };
  const forward = [];
  for (const [target, [edge]] of targets)
    if (target.vertex.column > start.column)
      forward.push([target.vertex, edge]);
    else
      frame.links.push({
        wire,
        a: start,
        b: target.vertex,
        edge,
        backward: true,
        aOffset: outOffset(from),
        bOffset: inOffset(target),
      });
  const end = columns.length - 1;
  const last = out ? end : forward.reduce((most, [vertex]) => Math.max(most, vertex.column), 0);
  const bends = last - start.column <= kLongestChain;
  let previous = start;
  for (let c = start.column + 1; bends && c <= last; ++c) {
    for (const [vertex, edge] of forward)
      if (vertex.column === c) join(previous, vertex, edge);
    if (c === last && !out) break;
    const bend = add(c, null, 0);
    join(previous, bend);
    previous = bend;
  }
  if (!bends) {
    for (const [vertex, edge] of forward) join(start, vertex, edge);
    if (out) join(start, previous = add(end, null, 0));
  }
  if (out) previous.leaves = source.id;
}

function orderColumns(columns) {
  const number = ({vertices}) => vertices.forEach((v, i) => (v.place = i));
  columns.forEach(number);
  const sort = (column, side) => {
    for (const v of column.vertices) {
      const links = v[side];
      v.wish = links.length === 0 ? v.place : links.reduce((sum, link) => {
        const [other, offset] = side === "left" ? [link.a, link.aOffset] : [link.b, link.bOffset];
        return sum + other.place + (other.h ? offset / other.h : 0.5);
      }, 0) / links.length;
    }
    column.vertices.sort((u, v) => u.wish - v.wish || u.place - v.place);
    number(column);
  };
  for (let sweep = 0; sweep < 4; ++sweep) {
    if (sweep % 2 === 0)
      for (let c = 1; c < columns.length; ++c) sort(columns[c], "left");
    else
      for (let c = columns.length - 2; c >= 0; --c) sort(columns[c], "right");
  }
}

function stackColumns(columns) {
  for (const column of columns) settle(column, () => 0);
  const wish = (sides) => (v) => {
    let sum = 0, weight = 0;
    for (const side of sides)
      for (const link of v[side]) {
        const w = link.straight ? 8 : 1;
        const a = link.a.y + lineOf(link.a, link.aOffset),
              b = link.b.y + lineOf(link.b, link.bOffset);
        const y = side === "left" ? v.y + a - b : v.y + b - a;
        sum += w * y;
        weight += w;
      }
    return weight ? sum / weight : v.y;
  };
  for (const sides of [["left"], ["right"], ["left"], ["left", "right"]]) {
    const order = sides[0] === "right" ? [...columns].reverse() : columns;
    for (const column of order) settle(column, wish(sides));
  }
}

// The height of a vertex that its neighbours keep to: where the wire meets it, but the first row of
// a folded frame, which begins at its top and ends at its bottom; a chain of those would be a
// staircase.
function lineOf({node}, offset) {
  return node?.kind === "frame" && node.folded ? Math.min(offset, 60) : offset;
}

// Nearest heights to the wanted ones that keep order and gaps: pool adjacent violators. Heights
// become free of gaps by subtracting each vertex's smallest height above the first; then order is
// all that is left.
function settle({vertices}, wanted) {
  const blocks = [];
  let shift = 0;
  vertices.forEach((v, i) => {
    if (i) shift += vertices[i - 1].h + gapBetween(vertices[i - 1], v);
    v.shift = shift;
    let block = {from: i, weight: v.node ? 1 : 2, mean: wanted(v) - shift};
    while (blocks.length && blocks[blocks.length - 1].mean > block.mean) {
      const before = blocks.pop(), weight = before.weight + block.weight;
      block = {
        from: before.from,
        weight,
        mean: (before.mean * before.weight + block.mean * block.weight) / weight
      };
    }
    blocks.push(block);
  });
  blocks.forEach((block, b) => {
    const end = b + 1 < blocks.length ? blocks[b + 1].from : vertices.length;
    for (let i = block.from; i < end; ++i) vertices[i].y = block.mean + vertices[i].shift;
  });
}

function gapBetween(u, v) {
  return u.node && v.node ? 18 : u.node || v.node ? 12 : 9;
}
