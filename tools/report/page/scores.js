// Scores: those that count as big figures, all others in tables.

function scoreRows() {
  const rows = new Map();
  for (const run of shownRuns()) {
    for (const score of report.runs[run].scores) {
      const key = JSON.stringify([score.subset, score.name]);
      const { name, meaning, subset } = score;
      if (!rows.has(key)) rows.set(key, { name, meaning, subset, isHeadline: false, cells: new Map() });
      rows.get(key).cells.set(run, score);
      rows.get(key).isHeadline ||= score.is_headline;
    }
  }
  const found = [...rows.values()];
  if (found.length && !found.some((row) => row.isHeadline)) found[0].isHeadline = true;
  return found;
}

function countText(score) {
  if (score.num === null) return "";
  const right = score.right === null ? "" : `${plainNumber(score.right)} `;
  return `${right}of ${plainNumber(score.num)} ${score.what}`;
}

const plainNumber = (value) => count(Number(value.toFixed(2)));
const hasInterval = (score) => score.low !== null && score.high !== null;
const intervalText = (score) => `${(100 * score.low).toFixed(1)} to ${percent(score.high)}`;

// A whisker from low to high and a dot at the value, on an axis that the row's cells share.
function intervalBar(score, most) {
  const at = (share) => 2 + (196 * Math.min(share, most)) / most;
  const [low, high] = hasInterval(score) ? [at(score.low), at(score.high)] : [];
  return svg(
    "svg",
    { class: "interval", viewBox: "0 0 200 14", "aria-hidden": "true", preserveAspectRatio: "none" },
    svg("path", { class: "track", d: "M2 7h196" }),
    hasInterval(score) && svg(
      "path",
      { class: "whisker", d: `M${low} 7H${high}M${low} 2.5v9M${high} 2.5v9` },
    ),
    svg("path", { class: "dot", d: `M${at(score.value)} 7h0` }),
  );
}

const axisEnd = (scores) => {
  const most = Math.max(...scores.map((score) => Math.max(score.value, score.high ?? 0)));
  return [0.05, 0.1, 0.25, 0.5, 1].find((end) => most <= end) ?? most;
};

function bigScore(score, most) {
  if (!score) return h("span", { class: "soft" }, "–");
  const interval = () => h(
    "div",
    { class: "soft small" },
    word("interval", "95 % interval"),
    ` ${intervalText(score)}`,
  );
  const ends = [h("span", {}, "0"), h("span", {}, percent(most, 0))];
  return [
    h("div", { class: "big" }, (100 * score.value).toFixed(1), h("small", {}, " %")),
    intervalBar(score, most),
    h("div", { class: "axis soft", "aria-hidden": "true" }, ends),
    h("div", { class: "soft small" }, countText(score)),
    hasInterval(score) && interval(),
  ];
}

function smallScore(score) {
  if (!score) return "–";
  const notes = [hasInterval(score) && intervalText(score), countText(score)].filter(Boolean);
  return [h("b", {}, percent(score.value)), notes.map((note) => h("span", { class: "soft block" }, note))];
}

// One run: tiles. Several: a table, a column for each.
function headlines(rows) {
  const runs = shownRuns();
  const subset = (row) => row.subset && h("span", { class: "soft block small" }, row.subset);
  const label = (row) => [word(row.name, row.name, row.meaning), subset(row)];
  const score = (row, run) => bigScore(row.cells.get(run), axisEnd([...row.cells.values()]));
  if (!isComparison()) {
    const tile = (row) => h("div", {}, h("div", { class: "label" }, label(row)), score(row, runs[0]));
    return h("div", { class: "tiles" }, rows.map(tile));
  }
  const cell = (row, run) => [h("span", { class: "on-phone" }, runName(run)), score(row, run)];
  const body = rows.map((row) => [label(row), runs.map((run) => cell(row, run))]);
  return table("headlines", ["Score", ...runs.map(runName)], body);
}

// "task pass@2" is found in the row "task" and the column "pass@2"; other scores have a column of their own.
function placeOf(name) {
  const found = /^(.*) (pass@\d+|oracle)$/.exec(name);
  return found ? { row: found[1], column: found[2] } : { row: "", column: name };
}

function scoresOfSubset(subset, scores) {
  const places = new Map(scores.map((row) => [placeOf(row.name), row]));
  const at = (name, column) => [...places].find(
    ([place]) => place.row === name && place.column === column,
  )?.[1];
  const [names, columns] = ["row", "column"].map(
    (key) => [...new Set([...places.keys()].map((place) => place[key]))],
  );
  const passes = (column) => (column.startsWith("pass@") ? report.words["pass@k"] : undefined);
  const meaning = (column) => at("", column)?.meaning ?? report.words[column] ?? passes(column);
  const head = (name, run) => [
    isComparison() && [runLetter(run), " "],
    name && word(name, name, at(name, columns[0])?.meaning),
  ];
  const cells = (name, run) => columns.map((column) => smallScore(at(name, column)?.cells.get(run)));
  const rows = names.flatMap((name) => shownRuns().map((run) => [head(name, run), cells(name, run)]));
  const heads = [subset || "Score", ...columns.map((column) => word(column, column, meaning(column)))];
  const label = `Scores, ${subset}`;
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": label },
    table("plain wide-table", heads, rows),
  );
}

function allScores(rows) {
  const subsets = [...new Set(rows.map((row) => row.subset))];
  return subsets.map((subset) => scoresOfSubset(subset, rows.filter((row) => row.subset === subset)));
}

function renderScores() {
  const rows = scoreRows();
  replaceContent(
    byId("scores"),
    rows.length > 0 && headlines(rows.filter((row) => row.isHeadline)),
    rows.some((row) => !row.isHeadline) && h("details", {}, h("summary", {}, "All scores"), allScores(rows)),
  );
}
