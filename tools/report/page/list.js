// The list of puzzles. Its pictures are drawn when they come near the screen.

const drawWhenNear = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      drawWhenNear.unobserve(target);
      target.draw();
    }
  },
  { rootMargin: "600px" },
);

function thumbs(puzzle) {
  const box = h("span", { class: "thumbs", "aria-hidden": "true" });
  box.draw = () => {
    const grids = [puzzle.inputs[0]?.grid, puzzle.results[countingRun()]?.answers[0]?.attempts[0]?.grid];
    const given = report.blank === null ? null : cellsOf(puzzle.inputs[0]?.grid ?? "");
    const draw = (grid) => grid && drawGrid(grid, { side: 52, label: "", least: 1, most: 14, given });
    box.replaceChildren(...grids.map((grid) => h("span", {}, draw(grid))));
  };
  drawWhenNear.observe(box);
  return box;
}

function resultCells(puzzle, run) {
  const { cells_right = null, agreement = null, num_segments = null } = puzzle.results[run] ?? {};
  const numbers = [
    cells_right !== null && `${percent(cells_right, 0)} of cells`,
    agreement !== null && `${percent(agreement, 0)} agree`,
    num_segments !== null && plural(Number(num_segments.toFixed(1)), "segment"),
  ];
  return h(
    "span",
    { class: "result" },
    isComparison() && runLetter(run),
    statusBadge(statusOf(puzzle, run)),
    numbers.map((number) => h("span", { class: "numbers soft" }, number)),
  );
}

const nameOf = (puzzle) => puzzle.title || puzzle.id;

function listRow(puzzle) {
  const size = `${puzzle.height} × ${puzzle.width}`;
  const tags = [size, puzzle.split, ...puzzle.subsets].filter(Boolean).join(" · ");
  const name = [h("b", { class: "mono" }, nameOf(puzzle)), h("span", { class: "soft small block" }, tags)];
  const results = shownRuns().map((run) => resultCells(puzzle, run));
  const href = link({ puzzle: puzzle.id, segment: "" });
  return h(
    "li",
    {},
    h(
      "a",
      { href, "data-key": `puzzle ${puzzle.id}`, onclick: openFromList(puzzle) },
      thumbs(puzzle),
      h("span", {}, name),
      h("span", { class: "results" }, results),
    ),
  );
}

const openFromList = (puzzle) => (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // a new tab, by the address
  event.preventDefault();
  choose({ puzzle: puzzle.id, segment: "" });
};

function countLine(number) {
  const missing = report.num_puzzles - report.puzzles.length;
  const isFiltered = FILTERS.some((key) => state[key]);
  const all = plural(report.puzzles.length, "puzzle");
  return [
    isFiltered ? `${count(number)} of ${all}` : all,
    missing > 0 ? `; ${isComparison() ? "the runs have" : "the run has"} ${count(missing)} more, which this page leaves out` : "",
    isFiltered && [" ", button("show all", clearFilters, { class: "small-button controls" })],
  ];
}

function renderList() {
  const puzzles = listed();
  replaceContent(byId("list"), puzzles.map(listRow));
  replaceContent(byId("count"), countLine(puzzles.length));
}
