// A status is a symbol and a word; its colour comes on top.

const ICONS = {
  solved: () => [
    svg("circle", { cx: 8, cy: 8, r: 7, class: "full" }),
    svg("path", { d: "M4.6 8.2 7 10.6 11.5 5.6", class: "cut" }),
  ],
  close: () => [
    svg("circle", { cx: 8, cy: 8, r: 6.2, class: "ring" }),
    svg("path", { d: "M8 1.8a6.2 6.2 0 0 0 0 12.4z", class: "full" }),
  ],
  unsolved: () => [
    svg("circle", { cx: 8, cy: 8, r: 6.2, class: "ring" }),
    svg("path", { d: "M5.5 5.5 10.5 10.5M10.5 5.5 5.5 10.5", class: "ring" }),
  ],
  unknown: () => [
    svg("circle", { cx: 8, cy: 8, r: 6.2, class: "ring", "stroke-dasharray": "2.4 2.4" }),
    svg("path", { d: "M6 6.4a2 2 0 1 1 2.6 1.9q-.6.2-.6 1.1M8 11.2v.4", class: "ring" }),
  ],
  "no answer": () => [svg("path", { d: "M4 8h8", class: "ring" })],
};

const statusIcon = (status) => svg(
  "svg",
  { class: `icon ${status.replace(" ", "-")}`, viewBox: "0 0 16 16", "aria-hidden": "true" },
  ICONS[status](),
);

const statusBadge = (status, { explained = false } = {}) =>
  h(
    "span",
    { class: `status ${status.replace(" ", "-")}` },
    statusIcon(status),
    explained ? word(status) : status,
  );

// The letter of a run, in its colour; the name stands beside it or in its title.
const runLetter = (run) => h(
  "span",
  { class: "letter", style: `--run: var(--run-${run % 6})`, title: report.runs[run].name },
  letterOf(run),
);
const runName = (run) => h(
  "span",
  { class: "run-name" },
  isComparison() && runLetter(run),
  h("span", {}, report.runs[run].name),
);
