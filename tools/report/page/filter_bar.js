// The controls above the list.

const clearFilters = () => choose(Object.fromEntries(FILTERS.map((key) => [key, ""])));

function rangeFields(name, unit, most) {
  const { texts } = rangeIn(state[name]);
  const field = (i, end) =>
    h("input", {
      type: "number",
      inputmode: "numeric",
      min: 0,
      max: most,
      value: texts[i],
      placeholder: i ? String(most) : "0",
      "aria-label": `${name}, ${end}`,
      "data-key": `${name} ${i}`,
      oninput: (event) => {
        const ends = [...rangeIn(state[name]).texts];
        ends[i] = event.target.value.replace(/\D/g, "");
        choose({ [name]: ends.join("") ? ends.join("-") : "" }, { push: false });
      },
    });
  return h(
    "div",
    { class: "field" },
    h("span", { class: "label" }, word(name)),
    h("span", { class: "range" }, field(0, "least"), "–", field(1, "most"), unit),
  );
}

// No <label>, since a term that is explained may not stand in one.
function labelled(name, options, value, action) {
  return h(
    "div",
    { class: "field" },
    h("span", { class: "label" }, word(name)),
    choice(options, value, action, { "aria-label": name, "data-key": name }),
  );
}

function comparisons() {
  const runs = shownRuns();
  const pairOf = (a, b) => [`${a}>${b}`, `solved by ${letterOf(a)}, not by ${letterOf(b)}`];
  const pairs = runs.flatMap((a) => runs.filter((b) => b !== a).map((b) => pairOf(a, b)));
  const [all, none] = runs.length === 2 ? ["both", "neither"] : ["all", "none"];
  const options = [["", "any"], ...pairs, ["all", `solved by ${all}`], ["none", `solved by ${none}`]];
  options.push(["differ", "statuses differ"]);
  const pair = statusPairIn(state.compare);
  if (pair) options.push([state.compare, statusPairText(...pair)]);
  return options;
}

function statusChips() {
  const run = countingRun();
  const rest = listed(["status"]);
  const chosen = state.status.split(",");
  return h(
    "div",
    { class: "chips", id: "statuses", role: "group", "aria-label": "Status" },
    statusesOf(run).map((status) => {
      const number = rest.filter((puzzle) => statusOf(puzzle, run) === status).length;
      return toggle(
        [statusIcon(status), `${status} `, h("span", { class: "soft" }, count(number))],
        chosen.includes(status),
        () => choose({ status: toggledStatus(status) }),
        { "data-key": `status ${status}`, title: report.words[status] },
      );
    }),
  );
}

const any = (values) => [["", "any"], ...values.map((value) => [value, value])];
const valuesOf = (of) => [...new Set(report.puzzles.flatMap(of))].filter(Boolean).sort();

// How runs are compared, if there are several.
function comparisonFields() {
  const runs = shownRuns();
  if (runs.length < 2) return [];
  const names = runs.map((run) => [String(run), `${letterOf(run)} ${report.runs[run].name}`]);
  return [
    labelled(
      "status of",
      names,
      String(countingRun()),
      (run) => choose({ run: run === String(runs[0]) ? "" : run }),
    ),
    labelled("compare", comparisons(), state.compare, (compare) => choose({ compare })),
  ];
}

function fields() {
  const [splits, subsets] = [valuesOf((puzzle) => puzzle.split), valuesOf((puzzle) => puzzle.subsets)];
  const longest = report.puzzles.reduce((most, puzzle) => Math.max(most, sideOf(puzzle)), 1);
  const hasAgreement = report.puzzles.some(
    (puzzle) => puzzle.results.some((result) => (result?.agreement ?? null) !== null),
  );
  return [
    comparisonFields(),
    splits.length > 1 && labelled("split", any(splits), state.split, (split) => choose({ split })),
    subsets.length > 0 && labelled("subset", any(subsets), state.subset, (subset) => choose({ subset })),
    rangeFields("size", "cells", longest),
    hasAgreement && rangeFields("agreement", "%", 100),
    labelled(
      "order by",
      Object.entries(SORTS).map(([key, sort]) => [key, sort.label]),
      SORTS[state.sort] ? state.sort : "status",
      (sort) => choose({ sort: sort === "status" ? "" : sort, reverse: "" }),
    ),
    toggle(
      "reversed",
      state.reverse === "1",
      () => choose({ reverse: state.reverse ? "" : "1" }),
      { "data-key": "reverse" },
    ),
  ];
}

const FOLDED = ["split", "subset", "size", "agreement", "compare"];
let areFieldsOpen = null;

function renderFilters() {
  areFieldsOpen ??= innerWidth >= 760 || FOLDED.some((key) => state[key]);
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search by name  ( / )",
    "aria-label": "Search by name",
    value: state.search,
    "data-key": "search",
    oninput: (event) => choose({ search: event.target.value }, { push: false }),
  });
  replaceContent(
    byId("filters"),
    h("div", { class: "bar" }, search, statusChips()),
    h(
      "details",
      { open: areFieldsOpen, ontoggle: (event) => (areFieldsOpen = event.target.open) },
      h("summary", { "data-key": "more" }, "Filters and order"),
      h("div", { class: "fields" }, fields()),
    ),
  );
}

// What a field should hold, by its data-key: "search", or "size 0" for the least one.
function valueOfField(key) {
  const [name, end] = key.split(" ");
  return end === undefined ? state[name] : rangeIn(state[name]).texts[end];
}

// Typing leaves the field as it is, and draws the counts anew.
function renderChangedFilters() {
  const field = document.activeElement;
  const isTyped = byId("filters").contains(field) && field.tagName === "INPUT";
  if (isTyped && field.value === valueOfField(field.dataset.key)) byId("statuses").replaceWith(statusChips());
  else renderFilters();
}
