"use strict";

// Reads the record out of the page and checks what the rest relies on: format, lists, unique keys,
// and inputs that are earlier ops. A record that breaks a promise is refused in one sentence,
// because a graph drawn from half a record would look like a true one.

const kFormat = "macgrad-inspect-1";

class RecordProblem extends Error {}

function readRecord(text) {
  if (text.trim() === "") throw new RecordProblem("This page holds no record: run inspect again.");
  let record;
  try {
    record = JSON.parse(text);
  } catch (error) {
    throw new RecordProblem("The record of this page is not JSON: " + error.message + ".");
  }
  if (record === null || typeof record !== "object" || Array.isArray(record) ||
      Object.keys(record).length === 0)
    throw new RecordProblem("The record of this page is empty: no run was recorded.");
  if (record.format !== kFormat)
    throw new RecordProblem(
        `The record's format is ${JSON.stringify(record.format ?? null)}, but this page reads "${
            kFormat}" ` +
        "only: write the page again with the program that made the record.");
  const steps = record.steps ?? [], attentions = record.attentions ?? [];
  if (!Array.isArray(steps) || !Array.isArray(attentions))
    throw new RecordProblem("The record is broken: its steps and attentions must be lists.");
  steps.forEach(checkStep);
  attentions.forEach(checkAttention);
  if (steps.length === 0 && attentions.length === 0)
    throw new RecordProblem("The record is empty: it has no step and no attention.");
  return {
    title: String(record.title ?? "macgrad inspect"),
    about: pairs(record.about),
    formulas: new Map(Object.entries(record.formulas ?? {})),
    steps,
    attentions,
  };
}

// Lists of [name, value] as texts; anything else in the list is left out.
function pairs(list) {
  return (Array.isArray(list) ? list : [])
      .filter(Array.isArray)
      .map(([a, b]) => [String(a), String(b ?? "")]);
}

function checkStep(step, index) {
  const broken = (what) =>
      new RecordProblem(`The record is broken: step ${index + 1} of the list ${what}.`);
  if (step === null || typeof step !== "object") throw broken("is no object");
  step.ops ??= [];
  step.leaves ??= [];
  if (!Array.isArray(step.ops) || !Array.isArray(step.leaves))
    throw broken("has no list of ops or leaves");
  const keys = new Set();
  for (const thing of [...step.ops, ...step.leaves]) {
    if (thing === null || typeof thing !== "object" || typeof thing.key !== "string")
      throw broken("has an op or a leaf without a key");
    if (keys.has(thing.key))
      throw broken("has two entries named " + JSON.stringify(shorten(thing.key, 200)));
    keys.add(thing.key);
  }
  step.ops.forEach((op, at) => {
    if (!Array.isArray(op.inputs) || !Array.isArray(op.outputs))
      throw broken(`has an op without inputs or outputs: ${shorten(op.key, 200)}`);
    for (const input of op.inputs) {
      const [i, o] = Array.isArray(input) ? input : [];
      const known = i === -2 || (i === -1 && step.leaves[o] !== undefined) ||
          (Number.isInteger(i) && i >= 0 && i < at && step.ops[i].outputs[o] !== undefined);
      if (!known)
        throw broken(`has an op whose input ${JSON.stringify(input)} is no earlier op: ${
            shorten(op.key, 200)}`);
    }
  });
}

function checkAttention(attention, index) {
  const broken = (what) =>
      new RecordProblem(`The record is broken: attention ${index + 1} of the list ${what}.`);
  if (attention === null || typeof attention !== "object") throw broken("is no object");
  if (!Array.isArray(attention.modes) || attention.modes.length === 0) throw broken("has no modes");
  for (const mode of attention.modes)
    for (const name of ["exact", "estimate"]) {
      const m = mode?.[name];
      if (!Array.isArray(m?.values) || m.values.length !== m.rows * m.columns)
        throw broken(`has a matrix ${name} that is not rows × columns`);
    }
}

function shorten(text, most) {
  return text.length <= most ? text : text.slice(0, most - 1) + "…";
}
