// The keyboard.

const KEYS = [
  ["/", "search"],
  ["j, k or ↓, ↑", "next or previous puzzle"],
  ["Enter", "open a puzzle"],
  ["Escape", "back"],
  ["space", "play or pause"],
  ["←, →", "previous or next segment"],
  ["n", "numbers in cells"],
  ["?", "this help"],
];

function renderHelp() {
  const entries = (kind, pairs) =>
    h("dl", { class: kind }, pairs.map(([term, text]) => [h("dt", {}, term), h("dd", {}, text)]));
  byId("help").replaceChildren(
    button("Close", () => byId("help").close(), { class: "close-help" }),
    h("h2", {}, "Keys"),
    entries("keys", KEYS),
    h("h2", {}, "Words"),
    entries("", Object.entries(report.words)),
  );
}

const openHelp = () => byId("help").open || byId("help").showModal();

function moveInList(by) {
  const rows = [...byId("list").querySelectorAll("a")];
  const index = rows.indexOf(document.activeElement);
  const next = rows[index < 0 ? 0 : Math.min(Math.max(index + by, 0), rows.length - 1)];
  next?.focus();
}

function movePuzzle(by) {
  if (!state.puzzle) return moveInList(by);
  const { before, after } = neighbours();
  goTo(by < 0 ? before : after);
}

function goBack() {
  if (!byId("tip").hidden) hideTip();
  else if (state.puzzle) choose({ puzzle: "", segment: "" });
  else document.activeElement?.blur();
}

const isInList = (element) => byId("list").contains(element);

// What each key does; a function that returns false leaves it to the browser.
const ACTIONS = {
  "/": () => (state.puzzle ? choose({ puzzle: "", segment: "" }) : null, byId("search").focus()),
  j: () => movePuzzle(1),
  k: () => movePuzzle(-1),
  ArrowDown: () => isInList(document.activeElement) && movePuzzle(1),
  ArrowUp: () => isInList(document.activeElement) && movePuzzle(-1),
  ArrowLeft: () => (player?.length ? player.step(-1) : false),
  ArrowRight: () => (player?.length ? player.step(1) : false),
  " ": () => (player?.length ? player.toggle() : false),
  n: () => hasNumbers && choose({ numbers: state.numbers ? "" : "1" }),
  "?": openHelp,
  Escape: goBack,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const target = event.target;
  const isField = target.matches("input:not([type=range]), select, textarea");
  if (isField && event.key !== "Escape") return;
  if (event.key === " " && target.matches("button, summary, a")) return; // it presses them
  if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
  const action = ACTIONS[event.key];
  if (action && action() !== false) event.preventDefault();
}
