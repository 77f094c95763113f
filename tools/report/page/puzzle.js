// A puzzle in full: demonstrations, inputs with their truth, and what each run answers.

function demonstrationsOf(puzzle, longest) {
  const draw = (grid, label) => drawGrid(grid, { side: 132, longest, label });
  const pair = ([before, after], i) =>
    h(
      "div",
      { class: "pair" },
      draw(before, `Demonstration ${i + 1}, input`),
      h("span", { class: "arrow", "aria-hidden": "true" }, "→"),
      draw(after, `Demonstration ${i + 1}, output`),
    );
  if (!puzzle.demonstrations.length) return null;
  const pairs = h("div", { class: "pairs" }, puzzle.demonstrations.map(pair));
  return h("section", { "aria-label": "Demonstrations" }, h("h2", {}, "Demonstrations"), pairs);
}

function inputOf(puzzle, index, longest, players) {
  const [input, number, runs] = [puzzle.inputs[index], puzzle.inputs.length, shownRuns()];
  const title = number > 1 ? `Test input ${index + 1} of ${number}` : "Test input";
  const side = innerWidth < 760 ? 150 : runs.length > 1 ? 208 : 240;
  const shape = { side, longest, given: report.blank === null ? null : cellsOf(input.grid) };
  const drawn = (name, grid) => framed(name, sizeText(grid), drawGrid(grid, { ...shape, label: name }));
  const unknown = () => framed("Truth", "not known", h("span", { class: "no-grid" }, "?"));
  const question = [
    drawn("Input", input.grid),
    input.truth === null ? unknown() : drawn("Truth", input.truth),
  ];
  return h(
    "section",
    { class: "asked", "aria-label": title },
    h("h2", {}, title),
    h(
      "div",
      { class: `beside${runs.length > 1 ? " compared" : ""}` },
      h("div", { class: "question" }, question),
      h("div", { class: "answers" }, runs.map((run) => answerOf(puzzle, run, index, shape, players))),
    ),
  );
}

function resultFacts({ cells_right, agreement, num_segments }) {
  return [
    cells_right !== null && [`${percent(cells_right)} `, word("cells right", "of cells right")],
    agreement !== null && [`${percent(agreement, 0)} `, word("agreement")],
    num_segments !== null && [
      `${Number(num_segments.toFixed(1))} `,
      word("segment", num_segments === 1 ? "segment" : "segments"),
    ],
  ].filter(Boolean);
}

function resultLine(puzzle, run) {
  const result = puzzle.results[run];
  return h(
    "p",
    { class: "line" },
    isComparison() && runName(run),
    statusBadge(statusOf(puzzle, run), { explained: true }),
    result && resultFacts(result).map((fact) => h("span", { class: "soft" }, fact)),
  );
}

const tagsOf = (puzzle) =>
  [puzzle.split && word("split", puzzle.split), ...puzzle.subsets]
    .filter(Boolean)
    .map((tag) => h("span", { class: "tag" }, tag));

function puzzleHead(puzzle) {
  return h(
    "header",
    { class: "puzzle-head" },
    h("h1", { class: "mono" }, nameOf(puzzle)),
    puzzle.title && puzzle.title !== puzzle.id && h("span", { class: "soft mono small" }, puzzle.id),
    h("span", { class: "tag" }, `${puzzle.height} × ${puzzle.width}`),
    tagsOf(puzzle),
    h("div", { class: "lines-of-runs" }, shownRuns().map((run) => resultLine(puzzle, run))),
  );
}

// players: what plays all trajectories of the puzzle in step; null on paper.
function puzzleParts(puzzle, players) {
  const longest = Math.max(puzzle.height, puzzle.width);
  return [
    puzzleHead(puzzle),
    demonstrationsOf(puzzle, longest),
    puzzle.inputs.map((_, i) => inputOf(puzzle, i, longest, players)),
  ];
}

function neighbours() {
  const puzzles = listed();
  const index = puzzles.findIndex((puzzle) => puzzle.id === state.puzzle);
  const [before, after] = [puzzles[index - 1], index < 0 ? puzzles[0] : puzzles[index + 1]];
  return { index, number: puzzles.length, before, after };
}

function goTo(puzzle) {
  if (puzzle) choose({ puzzle: puzzle.id, segment: "" });
}

function puzzleBar() {
  const { index, number, before, after } = neighbours();
  const step = (label, puzzle, title) => button(
    label,
    () => goTo(puzzle),
    { disabled: !puzzle, title, "aria-label": title, "data-key": title },
  );
  return h(
    "nav",
    { class: "puzzle-bar controls", "aria-label": "Puzzles" },
    button(
      ["← All", h("span", { class: "wide" }, " puzzles")],
      () => choose({ puzzle: "", segment: "" }),
      { "data-key": "back", "aria-label": "All puzzles", title: "Back to the list (Escape)" },
    ),
    h(
      "span",
      { class: "soft small" },
      index < 0 ? "not among the listed" : `${count(index + 1)} of ${count(number)}`,
    ),
    step("‹", before, "Previous puzzle (k)"),
    step("›", after, "Next puzzle (j)"),
    hasNumbers && toggle(
      "Numbers",
      state.numbers === "1",
      () => choose({ numbers: state.numbers ? "" : "1" }),
      { title: "Numbers in cells (n)", "data-key": "numbers" },
    ),
  );
}

let player = null;

function renderPuzzle() {
  player?.stop();
  player = null;
  const isOpen = state.puzzle !== "";
  byId("overview").hidden = isOpen;
  document.body.classList.toggle("reading", isOpen);
  document.body.classList.toggle("numbered", state.numbers === "1");
  byId("puzzle").hidden = !isOpen;
  if (!isOpen) return replaceContent(byId("puzzle"));
  const puzzle = report.puzzles.find((known) => known.id === state.puzzle);
  document.title = `${puzzle ? nameOf(puzzle) : state.puzzle} · ${report.title}`;
  if (!puzzle) {
    const missing = h("p", {}, "This page has no puzzle ", h("b", { class: "mono" }, state.puzzle), ".");
    return replaceContent(byId("puzzle"), puzzleBar(), missing);
  }
  player = new Player();
  replaceContent(byId("puzzle"), puzzleBar(), puzzleParts(puzzle, player), player.bar());
  return player.show();
}
