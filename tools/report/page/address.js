// What the reader has chosen. It is kept in the address: a link shows the same again, and "back" goes back.

const DEFAULTS = {
  runs: "", // shown runs, such as "0,2"; empty: all
  run: "", // whose status counts for filters and order; empty: the first shown
  status: "", // such as "solved,close"; empty: all
  split: "",
  subset: "",
  size: "", // least and most of the longer side, such as "3-10", "-10"
  agreement: "", // in per cent, as `size`
  search: "",
  compare: "", // "0>1", "all", "none", "differ", or "0.solved/1.close"
  sort: "",
  reverse: "",
  puzzle: "", // the id of the open one
  segment: "", // which the players show; empty: the last
  numbers: "", // "1": numbers in cells
};

const listeners = [];
let state = read(location.hash);

function read(hash) {
  const given = new URLSearchParams(hash.slice(1));
  return Object.fromEntries(Object.keys(DEFAULTS).map((key) => [key, given.get(key) ?? DEFAULTS[key]]));
}

function link(patch) {
  const next = new URLSearchParams(
    Object.entries({ ...state, ...patch }).filter(([key, value]) => value !== DEFAULTS[key]),
  );
  return `#${next}`;
}

function tell(before) {
  const changed = new Set(Object.keys(DEFAULTS).filter((key) => state[key] !== before[key]));
  if (changed.size) for (const listener of listeners) listener(changed);
}

// push: false for what changes with each key or frame, which "back" should not go through.
function choose(patch, { push = true } = {}) {
  const before = state;
  const hash = link(patch);
  if (hash === link({})) return;
  state = { ...state, ...patch };
  try {
    if (push) history.pushState(null, "", hash);
    else history.replaceState(null, "", hash);
  } catch {
    // Safari takes a hundred in ten seconds, which a slider exceeds; the address then follows with the next choice.
  }
  tell(before);
}

function followAddress() {
  const before = state;
  state = read(location.hash);
  tell(before);
}

// A list such as "0,2" as whole numbers below `length`.
const numbersIn = (text, length) =>
  text.split(",").filter((part) => /^\d+$/.test(part)).map(Number).filter((number) => number < length);

function rangeIn(text) {
  const found = /^(\d*)-(\d*)$/.exec(text);
  const least = found?.[1] ? Number(found[1]) : -Infinity;
  const most = found?.[2] ? Number(found[2]) : Infinity;
  return {
    least,
    most,
    isSet: least > -Infinity || most < Infinity,
    texts: [found?.[1] ?? "", found?.[2] ?? ""],
  };
}
