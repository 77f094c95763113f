// Starts the page, and draws anew what a choice changes.

const THEMES = ["", "light", "dark"];

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // Some browsers keep nothing for files: the theme then holds until the page is closed.
  }
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function renderTools() {
  const change = () => {
    setTheme(isDark() ? "light" : "dark");
    renderTools();
  };
  const theme = { "data-key": "theme", id: "theme", title: "Light or dark page" };
  const help = { "data-key": "help", "aria-label": "Help", title: "Keys and words (?)" };
  replaceContent(
    byId("tools"),
    button(isDark() ? "Light" : "Dark", change, theme),
    button("?", openHelp, help),
  );
}

// Which runs are shown; one at least.
function renderChosenRuns() {
  if (!isComparison()) return;
  const shown = shownRuns();
  const flip = (run) => {
    const next = report.runs.map((_, i) => i).filter((i) => shown.includes(i) !== (i === run));
    const runs = next.length === report.runs.length ? "" : next.join(",");
    if (next.length) choose({ runs, run: "", compare: "" });
  };
  const chip = (run, i) => toggle(
    [runLetter(i), run.name],
    shown.includes(i),
    () => flip(i),
    { "data-key": `run ${i}` },
  );
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Runs" }, report.runs.map(chip));
  replaceContent(byId("chosen"), chips);
}

function renderOverview() {
  document.title = report.title;
  renderChosenRuns();
  renderScores();
  renderFacts();
  renderCurves();
  renderFigures();
  renderSettings();
  renderFilters();
  renderMatrix();
  renderList();
}

let listPlace = 0; // how far the list is scrolled
let shownPuzzle = "";

function openOrClose() {
  const left = shownPuzzle;
  shownPuzzle = state.puzzle;
  if (!left) listPlace = scrollY;
  renderPuzzle();
  if (shownPuzzle) {
    scrollTo(0, 0);
    byId("puzzle").focus({ preventScroll: true });
    return;
  }
  document.title = report.title;
  scrollTo(0, listPlace);
  const rows = [...byId("list").querySelectorAll("a")];
  rows.find((row) => row.dataset.key === `puzzle ${left}`)?.focus({ preventScroll: true });
}

function onChange(changed) {
  const has = (...keys) => keys.some((key) => changed.has(key));
  hideTip();
  if (has("runs")) renderOverview();
  else if (has("numbers", "run", "sort", "reverse", ...FILTERS)) {
    renderChangedFilters();
    renderMatrix();
    renderList();
  }
  if (has("puzzle")) openOrClose();
  else if (has("numbers", "runs") && state.puzzle) renderPuzzle();
  else if (has("segment")) player?.show();
}

// On paper, all listed puzzles in full, or the open one.
function fillPrinted() {
  if (state.puzzle || byId("printed").hasChildNodes()) return;
  byId("printed").replaceChildren(...listed().map((puzzle) => h("article", {}, puzzleParts(puzzle, null))));
}

const emptyPrinted = () => byId("printed").replaceChildren();

function listen() {
  listeners.push(onChange);
  addEventListener("popstate", followAddress);
  addEventListener("hashchange", followAddress);
  addEventListener("keydown", onKey);
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("beforeprint", fillPrinted);
  addEventListener("afterprint", emptyPrinted);
  matchMedia("print").addEventListener("change", (event) => (event.matches ? fillPrinted() : emptyPrinted()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", renderTools);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    (state.puzzle ? byId("puzzle") : byId("list")).focus();
  });
}

async function start() {
  try {
    const theme = localStorage.getItem("theme");
    if (THEMES.includes(theme)) setTheme(theme);
  } catch {
    // as above
  }
  if (!("DecompressionStream" in window && CSS.supports("color", "light-dark(white, black)"))) throw new Error(
    "the browser is older than May 2024, please take a newer one.",
  );
  report = await unpack(byId("payload").textContent.trim());
  prepareTokens();
  byId("made").textContent = report.made;
  byId("notes").append(...report.notes.map((note) => h("p", { class: "remark" }, note)));
  renderTools();
  renderHelp();
  renderOverview();
  renderPuzzle();
  shownPuzzle = state.puzzle;
  byId("notice").remove();
  listen();
}

start().catch((error) => {
  byId("notice").hidden = false;
  byId("notice").textContent = `This page cannot be shown: ${error.message}`;
  console.error(error);
});
