// Facts, settings and pictures of the analysis. Of several runs, what differs comes first.

function runTable(keys, valueOf, caption) {
  const runs = shownRuns();
  const letter = (run) => isComparison() && h("span", { class: "on-phone" }, runLetter(run));
  const rows = keys.map((key) => [key, runs.map((run) => [letter(run), valueOf(run, key) ?? "–"])]);
  return table("plain facts", isComparison() ? [caption, ...runs.map(runName)] : null, rows);
}

// Keys that all shown runs have in common, and those that differ.
function parted(keys, valueOf) {
  const runs = shownRuns();
  const isSame = (key) => runs.every((run) => valueOf(run, key) === valueOf(runs[0], key));
  return { same: keys.filter(isSame), different: keys.filter((key) => !isSame(key)) };
}

const keysOf = (records) => [...new Set(records.flatMap((record) => Object.keys(record)))];

const FIRST_FACTS = 10;

function factList(keys, valueOf) {
  return h(
    "dl",
    { class: "facts" },
    keys.map((key) => h("div", {}, h("dt", {}, key), h("dd", {}, valueOf(key)))),
  );
}

// One run: the first facts, and the others folded. Several: those that differ, and those in common folded.
function renderFacts() {
  const runs = shownRuns();
  const keys = keysOf(runs.map((run) => report.runs[run].facts));
  const valueOf = (run, key) => report.runs[run].facts[key];
  const isOne = runs.length === 1;
  const { same, different } = parted(keys, valueOf);
  const list = (listed) => factList(listed, (key) => valueOf(runs[0], key));
  const shown = isOne ? keys.slice(0, FIRST_FACTS) : different;
  const folded = isOne ? keys.slice(FIRST_FACTS) : same;
  const title = isOne ? plural(folded.length, "further fact") : `${plural(folded.length, "fact")} in common`;
  replaceContent(
    byId("facts"),
    shown.length > 0 && (isOne ? list(shown) : runTable(shown, valueOf, "Run")),
    folded.length > 0 && h("details", {}, h("summary", {}, title), list(folded)),
    runs.map(warningsOf),
  );
}

const warningsOf = (run) =>
  report.runs[run].warnings.map((warning) =>
    h("p", { class: "remark" }, isComparison() && [runLetter(run), " "], warning),
  );

const MANY_SETTINGS = 12;

function renderSettings() {
  const runs = shownRuns();
  const keys = keysOf(runs.map((run) => report.runs[run].settings)).sort();
  const valueOf = (run, key) => report.runs[run].settings[key];
  const { same, different } = parted(keys, valueOf);
  const isOpen = different.length <= MANY_SETTINGS;
  const inCommon = runs.length > 1 ? " in common" : "";
  const rows = same.map((key) => [key, [valueOf(runs[0], key)]]);
  replaceContent(
    byId("settings"),
    different.length > 0 && h(
      "details",
      { open: isOpen },
      h("summary", {}, `Different settings: ${count(different.length)}`),
      h("div", { class: "mono" }, runTable(different, valueOf, "Setting")),
    ),
    same.length > 0 && h(
      "details",
      {},
      h("summary", {}, `${plural(same.length, "setting")}${inCommon}`),
      table("plain facts mono", null, rows),
    ),
  );
}

function pictureOf(figure) {
  const uri = figure.uri.startsWith("data:") ? figure.uri : "data:,"; // nothing else is asked for
  const caption = h("figcaption", {}, h("b", {}, figure.title), " ", figure.caption);
  return h("figure", {}, h("img", { src: uri, alt: figure.title, loading: "lazy" }), caption);
}

function renderFigures() {
  const runs = shownRuns().filter((run) => report.runs[run].figures.length);
  const pictures = runs.map((run) => [
    isComparison() && h("h3", {}, runName(run)),
    h("div", { class: "pictures" }, report.runs[run].figures.map(pictureOf)),
  ]);
  replaceContent(
    byId("figures"),
    runs.length > 0 && h("details", { open: true }, h("summary", {}, "Analysis"), pictures),
  );
}
