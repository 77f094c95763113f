// Which puzzles are listed, and in which order.

const SORTS = {
  status: { label: "status", of: (puzzle, run) => STATUSES.indexOf(statusOf(puzzle, run)) },
  id: { label: "name", of: (puzzle) => puzzle.title || puzzle.id },
  cells: {
    label: "cells right",
    of: (puzzle, run) => puzzle.results[run]?.cells_right ?? null,
    isFalling: true,
  },
  agreement: {
    label: "agreement",
    of: (puzzle, run) => puzzle.results[run]?.agreement ?? null,
    isFalling: true,
  },
  segments: { label: "segments", of: (puzzle, run) => puzzle.results[run]?.num_segments ?? null },
  size: { label: "size", of: (puzzle) => sideOf(puzzle) },
};

// A value that is not known is NaN, and in no range that the reader has set.
const isIn = (range, value) => !range.isSet || (value >= range.least && value <= range.most);

function fitsComparison(puzzle, compare) {
  if (!compare) return true;
  const isSolved = (run) => statusOf(puzzle, run) === "solved";
  const runs = shownRuns();
  if (compare === "all") return runs.every(isSolved);
  if (compare === "none") return !runs.some(isSolved);
  if (compare === "differ") return runs.some((run) => statusOf(puzzle, run) !== statusOf(puzzle, runs[0]));
  const pair = /^(\d+)>(\d+)$/.exec(compare);
  if (pair) return isSolved(Number(pair[1])) && !isSolved(Number(pair[2]));
  const [a, x, b, y] = statusPairIn(compare) ?? [];
  return x === undefined || (statusOf(puzzle, a) === x && statusOf(puzzle, b) === y);
}

// Runs and statuses that a cell of the matrix asks for, such as [0, "solved", 1, "close"].
function statusPairIn(compare) {
  const found = /^(\d+)\.([a-z ]+)\/(\d+)\.([a-z ]+)$/.exec(compare);
  return found && [Number(found[1]), found[2], Number(found[3]), found[4]];
}

const statusPairText = (a, x, b, y) => `${letterOf(a)} ${x}, ${letterOf(b)} ${y}`;

// The listed puzzles in order; `without` names filters that do not count.
function listed(without = []) {
  const run = countingRun();
  const known = state.status.split(",").filter((status) => STATUSES.includes(status));
  const statuses = without.includes("status") ? [] : known;
  const compare = without.includes("compare") ? "" : state.compare;
  const [size, agreement] = [rangeIn(state.size), rangeIn(state.agreement)];
  const search = state.search.trim().toLowerCase();
  const puzzles = report.puzzles.filter(
    (puzzle) =>
      (!statuses.length || statuses.includes(statusOf(puzzle, run))) &&
      (!state.split || puzzle.split === state.split) &&
      (!state.subset || puzzle.subsets.includes(state.subset)) &&
      isIn(size, sideOf(puzzle)) &&
      isIn(agreement, (puzzle.results[run]?.agreement ?? NaN) * 100) &&
      (!search || puzzle.id.toLowerCase().includes(search) || puzzle.title.toLowerCase().includes(search)) &&
      fitsComparison(puzzle, compare),
  );
  const sort = SORTS[state.sort] ?? SORTS.status;
  const sign = (sort.isFalling ? -1 : 1) * (state.reverse ? -1 : 1);
  const order = (a, b) => {
    const [first, second] = [sort.of(a, run), sort.of(b, run)];
    if (
      first === null || second === null
    ) return (first === null) - (second === null); // unknown ones come last
    if (typeof first === "string") return sign * first.localeCompare(second, "en", { numeric: true });
    return sign * (first - second);
  };
  return puzzles.sort((a, b) => order(a, b) || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
}

const FILTERS = ["status", "split", "subset", "size", "agreement", "search", "compare"];

function toggledStatus(status) {
  const chosen = new Set(state.status.split(",").filter(Boolean));
  if (!chosen.delete(status)) chosen.add(status);
  return STATUSES.filter((known) => chosen.has(known)).join(",");
}
