// Elements of the page. Text goes in as text nodes only, so that no name in the data becomes markup.

const SVG = "http://www.w3.org/2000/svg";

// Attributes that begin with "on" are listeners; what is null, undefined or false is left out.
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(
  document.createElementNS(SVG, tag),
  attributes,
  children,
);
const byId = (id) => document.getElementById(id);

const percent = (share, digits = 1) => (
  share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`
);
const count = (number) => number.toLocaleString("en");
const plural = (number, noun, nouns = `${noun}s`) => `${count(number)} ${number === 1 ? noun : nouns}`;

function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 3)));
}

const button = (label, action, attributes = {}) => h(
  "button",
  { type: "button", onclick: action, ...attributes },
  label,
);

// A toggle, whose state is said by aria-pressed.
const toggle = (label, isOn, action, attributes = {}) => button(
  label,
  action,
  { "aria-pressed": String(isOn), ...attributes },
);

const choice = (options, value, action, attributes = {}) =>
  h(
    "select",
    { onchange: (event) => action(event.target.value), ...attributes },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );

// heads: what stands above the columns, from the first on; null: nothing. rows: what stands before a row, and its cells.
function table(kind, heads, rows) {
  const headOf = (head) => (head === "" ? h("td", {}) : h("th", { scope: "col" }, head));
  const body = rows.map(
    ([head, cells]) => h("tr", {}, h("th", { scope: "row" }, head), cells.map((cell) => h("td", {}, cell))),
  );
  return h(
    "table",
    { class: kind },
    heads && h("thead", {}, h("tr", {}, heads.map(headOf))),
    h("tbody", {}, body),
  );
}

// Keep the focus where it was when a part of the page is drawn anew.
function replaceContent(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  parent.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (focused) [
    ...parent.querySelectorAll("[data-key]"),
  ].find((e) => e.dataset.key === focused)?.focus({ preventScroll: true });
}
