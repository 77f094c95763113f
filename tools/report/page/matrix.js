// What one run solves and the other does not.

// A count that lists what it counts.
function matrixCell(compare, number, label) {
  const isChosen = state.compare === compare;
  const attributes = { "aria-label": label, title: label, "data-key": `matrix ${compare}` };
  const choosePuzzles = () => choose({ compare: isChosen ? "" : compare, status: "" });
  return number ? toggle(
    count(number),
    isChosen,
    choosePuzzles,
    attributes,
  ) : h("span", { class: "soft" }, "0");
}

// Of two runs: how many puzzles have which pair of statuses.
function pairMatrix(puzzles, a, b) {
  const number = (x, y) => puzzles.filter(
    (puzzle) => statusOf(puzzle, a) === x && statusOf(puzzle, b) === y,
  ).length;
  const cell = (x, y) => matrixCell(`${a}.${x}/${b}.${y}`, number(x, y), statusPairText(a, x, b, y));
  const head = (run, status) => [runLetter(run), statusBadge(status)];
  return table(
    "matrix",
    ["", ...statusesOf(b).map((y) => head(b, y))],
    statusesOf(a).map((x) => [head(a, x), statusesOf(b).map((y) => cell(x, y))]),
  );
}

// Of more runs: how many puzzles one solves and the other does not.
function solvedMatrix(puzzles, runs) {
  const isSolved = (puzzle, run) => statusOf(puzzle, run) === "solved";
  const number = (a, b) => puzzles.filter((puzzle) => isSolved(puzzle, a) && !isSolved(puzzle, b)).length;
  const cell = (a, b) =>
    a === b ? "·" : matrixCell(`${a}>${b}`, number(a, b), `solved by ${letterOf(a)}, not by ${letterOf(b)}`);
  const rows = runs.map((a) => [runName(a), runs.map((b) => cell(a, b))]);
  return table("matrix", ["solved by, but not by", ...runs.map(runLetter)], rows);
}

function renderMatrix() {
  const runs = shownRuns();
  const puzzles = listed(["status", "compare"]);
  if (runs.length < 2) return replaceContent(byId("matrix"));
  const isOpen = byId("matrix").querySelector("details")?.open ?? true;
  const counts = runs.length === 2 ? pairMatrix(puzzles, ...runs) : solvedMatrix(puzzles, runs);
  const ofSome = report.num_puzzles > report.puzzles.length ? ", of the puzzles on this page" : "";
  const title = h("summary", { "data-key": "matrix" }, `What one solves and the other does not${ofSome}`);
  return replaceContent(byId("matrix"), h("details", { open: isOpen }, title, counts));
}
