// Grids as SVG: sharp at every zoom and on paper. A path holds all cells of a colour, so 900 cells are few elements.

// Colours of the tokens, made ready once: what is drawn, and in which ink.
let inks = [];
let isTextual = false; // cells say what they are by text, as those of Sudokus do
let hasNumbers = false; // cells can show numbers on demand, as those of ARC

function prepareTokens() {
  const probe = document.createElement("canvas").getContext("2d");
  const isMost = (is) => report.tokens.filter(is).length > report.tokens.length / 2;
  isTextual = isMost((token) => token.text);
  hasNumbers = isMost((token) => !token.text && token.letter.trim());
  inks = report.tokens.map((token) => {
    probe.fillStyle = "#808080";
    probe.fillStyle = token.colour; // ignored if it is no colour
    const colour = String(probe.fillStyle);
    const [red, green, blue] = [1, 3, 5].map((i) => (parseInt(colour.slice(i, i + 2), 16) / 255) ** 2.2);
    const isPlain = isTextual && colour === "#ffffff"; // then it follows the light or dark page
    return {
      fill: isPlain ? "var(--cell)" : colour,
      ink: isPlain ? "plain" : 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 ? "dark" : "light",
    };
  });
}

function cellPaths(rows) {
  const paths = new Map();
  rows.forEach((row, y) => {
    for (let x = 0; x < row.length; ) {
      let end = x + 1;
      while (end < row.length && row[end] === row[x]) end++;
      paths.set(row[x], `${paths.get(row[x]) ?? ""}M${x} ${y}h${end - x}v1H${x}z`);
      x = end;
    }
  });
  return [...paths].map(([token, d]) => svg("path", { d, fill: inks[token]?.fill ?? "var(--line)" }));
}

function cellTexts(rows, given) {
  const byClass = new Map();
  const numbers = hasNumbers && state.numbers === "1";
  rows.forEach((row, y) =>
    row.forEach((token, x) => {
      const text = report.tokens[token]?.text || (numbers ? report.tokens[token]?.letter : "");
      if (!text?.trim()) return;
      const isFilled = report.blank !== null && given && given[y]?.[x] === parseInt(report.blank, 36);
      const name = `${inks[token].ink}${isFilled ? " filled" : ""}${text.length > 1 ? " long" : ""}`;
      if (!byClass.has(name)) byClass.set(name, []);
      byClass.get(name).push([x + 0.5, y + 0.5, text]);
    }),
  );
  return [...byClass].flatMap(([name, cells]) => {
    if (name.endsWith("long")) return cells.map(([x, y, text]) => svg("text", { class: name, x, y }, text));
    const each = (i) => cells.map((cell) => cell[i]).join(" ");
    return [svg("text", { class: name, x: each(0), y: each(1) }, cells.map((cell) => cell[2]).join(""))];
  });
}

function lines(height, width, every) {
  let d = "";
  const [down, across] = every;
  for (let y = down; y < height; y += down) d += `M0 ${y}h${width}`;
  for (let x = across; x < width; x += across) d += `M${x} 0v${height}`;
  return d;
}

// A square and a cross for wrong cells, a corner for changed ones, each with a halo that tells it from any colour.
function marks(cells, kind, hasText) {
  const one = {
    wrong: hasText
      ? ([y, x]) => `M${x + 0.08} ${y + 0.08}h.84v.84h-.84zM${x + 0.66} ${y + 0.16}l.2 .2m0 -.2l-.2 .2`
      : ([y, x]) => `M${x + 0.1} ${y + 0.1}h.8v.8h-.8zM${x + 0.36} ${y + 0.36}l.28 .28m0 -.28l-.28 .28`,
    changed: ([y, x]) => `M${x + 0.04} ${y + 0.96}v-.42l.42 .42z`,
  }[kind];
  const d = cells.map(one).join("");
  return d ? [svg("path", { d, class: `mark halo ${kind}` }), svg("path", { d, class: `mark ${kind}` })] : [];
}

// given: the input, where the answer fills in its blanks. wrong, changed: cells to mark.
function drawGrid(grid, {
  side = 160,
  longest = 0,
  label,
  given = null,
  wrong = [],
  changed = [],
  least = 3,
  most = 28,
} = {}) {
  const rows = cellsOf(grid);
  if (!rows.length) return h("span", { class: "no-grid" }, "no grid");
  const [height, width] = [rows.length, rows[0].length];
  const hasText = report.tokens.some((token) => token.text) || (hasNumbers && state.numbers === "1");
  let cell = Math.floor(side / Math.max(longest, height, width));
  cell = Math.min(Math.max(cell, hasText && side > 60 ? Math.max(least, 13) : least), most);
  const isFine = cell < 4 || side <= 60;
  return svg(
    "svg",
    {
      class: "grid",
      viewBox: `0 0 ${width} ${height}`,
      width: width * cell,
      height: height * cell,
      role: "img",
      "aria-label": [label, `${height} by ${width}`, wrong.length && `${plural(wrong.length, "cell")} wrong`]
        .filter(Boolean)
        .join(", "),
      style: `--stroke: ${Math.max(1, cell * 0.065) / cell}`,
    },
    cellPaths(rows),
    given && report.blank !== null && givenShade(rows, given),
    !isFine && svg("path", { class: "lines", d: lines(height, width, [1, 1]) }),
    report.box && svg("path", { class: "lines heavy", d: lines(height, width, report.box) }),
    cellTexts(rows, given),
    marks(wrong, "wrong", hasText),
    marks(changed, "changed", hasText),
  );
}

// What was given is shaded where cells say what they are by text.
function givenShade(rows, given) {
  if (!isTextual) return null;
  const blank = parseInt(report.blank, 36);
  let d = "";
  rows.forEach((row, y) => row.forEach((_, x) => given[y]?.[x] !== blank && (d += `M${x} ${y}h1v1h-1z`)));
  return svg("path", { d, class: "given" });
}

