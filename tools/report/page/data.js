// The report, and what follows from it. tools/report/payload.py says what its parts mean.

let report;

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const STATUSES = ["solved", "close", "unsolved", "unknown", "no answer"];
const statusOf = (puzzle, run) => puzzle.results[run]?.status ?? "no answer";
const hasStatus = (run, status) => report.puzzles.some((puzzle) => statusOf(puzzle, run) === status);
const statusesOf = (run) => STATUSES.filter((status) => hasStatus(run, status)); // in this order
const sideOf = (puzzle) => Math.max(puzzle.height, puzzle.width);

const letterOf = (run) => String.fromCharCode(65 + (run % 26));
const shownRuns = () => {
  const chosen = numbersIn(state.runs, report.runs.length);
  return chosen.length ? chosen : report.runs.map((_, run) => run);
};
const countingRun = () => {
  const shown = shownRuns();
  const chosen = numbersIn(state.run, report.runs.length)[0];
  return shown.includes(chosen) ? chosen : shown[0];
};
const isComparison = () => report.runs.length > 1;

// Rows of token numbers.
const parsed = new Map();
function cellsOf(grid) {
  let rows = parsed.get(grid);
  if (!rows) {
    rows = grid ? grid.split("/").map((row) => Array.from(row, (character) => parseInt(character, 36))) : [];
    parsed.set(grid, rows);
  }
  return rows;
}

// Which cells of `grid` differ from `other`; none are told if the sizes differ.
function differences(grid, other) {
  const [rows, others] = [cellsOf(grid), cellsOf(other)];
  const isSameSize = rows.length === others.length && rows[0]?.length === others[0]?.length;
  const cells = [];
  if (!isSameSize) return { isSameSize, cells };
  rows.forEach((row, y) => row.forEach((token, x) => token !== others[y][x] && cells.push([y, x])));
  return { isSameSize, cells };
}

const sizeText = (grid) => {
  const rows = cellsOf(grid);
  return rows.length ? `${rows.length} × ${rows[0].length}` : "empty";
};

// Frames of a trajectory, each in full.
const framesOf = (trajectory) => {
  let last = "";
  return trajectory.frames.map((frame) => (last = frame ?? last));
};

function trajectoryNote(frames, truth) {
  const last = frames.length;
  let steady = last;
  while (steady > 1 && frames[steady - 2] === frames[last - 1]) steady--;
  if (truth === null) return `The answer stays as it is from segment ${steady} on.`;
  if (frames[last - 1] === truth) return `Solved from segment ${steady} on.`;
  const solved = frames.flatMap((frame, i) => (frame === truth ? [i + 1] : []));
  if (solved.length) return `Solved in segment ${solved.join(", ")}, then lost.`;
  return `Not solved; the answer stays as it is from segment ${steady} on.`;
}
