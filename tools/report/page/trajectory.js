// A trajectory: the answer after a segment, with what changed and what is wrong, and q and the residual beside it.

const CHART = { width: 150, height: 40, pad: 4 };

// A small chart over the segments, with the position marked.
function sparkChart(values, most) {
  const known = values.filter((value) => value !== null);
  if (!known.length) return null;
  const top = most ?? (Math.max(...known) || 1);
  const { width, height, pad } = CHART;
  const x = (i) => pad + ((width - 2 * pad) * i) / Math.max(values.length - 1, 1);
  const y = (value) => height - pad - ((height - 2 * pad) * value) / top;
  const point = (value, i) => `${i && values[i - 1] !== null ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
  const d = values.map((value, i) => (value === null ? "" : point(value, i))).join("");
  const mark = svg("g", { class: "position" });
  const drawing = svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("path", { class: "rules", d: `M${pad} ${y(0)}H${width - pad}M${pad} ${y(top)}H${width - pad}` }),
    svg("path", { class: "curve", d }),
    mark,
  );
  const move = (i) => {
    const at = Math.min(i, values.length - 1);
    mark.replaceChildren(
      svg("path", { d: `M${x(at)} 0V${height}` }),
      ...(values[at] === null ? [] : [svg("circle", { cx: x(at), cy: y(values[at]), r: 3.2 })]),
    );
  };
  return { drawing, move };
}

// What is said of the answer at an index.
function frameNote(index, frames, changed, wrong) {
  const at = Math.min(index, frames.length - 1);
  const change = changed.isSameSize ? `${changed.cells.length} changed` : "size changed";
  const notes = [index > at && `stopped after segment ${at + 1}`, at === 0 ? "first answer" : change];
  if (wrong && !wrong.isSameSize) notes.push("wrong size");
  else if (wrong) notes.push(wrong.cells.length ? `${wrong.cells.length} wrong` : "right");
  return notes.filter(Boolean).join(" · ");
}

function chartsOf(trajectory) {
  const found = [
    { term: "q", values: trajectory.q, most: 1 },
    { term: "residual", values: trajectory.residuals, most: null },
  ];
  return found.flatMap(({ term, values, most }) => {
    const chart = sparkChart(values, most);
    const number = h("b", {});
    if (!chart) return [];
    const move = (i) => {
      chart.move(i);
      number.textContent = short(values[Math.min(i, values.length - 1)]);
    };
    return [
      { move, element: h("div", {}, h("div", { class: "small" }, word(term), " ", number), chart.drawing) },
    ];
  });
}

// `players` shows it at an index of its frames.
function trajectoryView(trajectory, input, shape, players) {
  const frames = framesOf(trajectory);
  if (!frames.length) return null;
  const hold = h("div", { class: "hold" });
  const note = h("div", { class: "soft small said" });
  const charts = chartsOf(trajectory);
  players.add(frames.length, (index) => {
    const at = Math.min(index, frames.length - 1);
    const changed = differences(frames[at], frames[Math.max(at - 1, 0)]);
    const wrong = input.truth === null ? null : differences(frames[at], input.truth);
    const marked = { label: `Answer after segment ${at + 1}`, wrong: wrong?.cells, changed: changed.cells };
    hold.replaceChildren(drawGrid(frames[at], { ...shape, ...marked }));
    note.textContent = frameNote(index, frames, changed, wrong);
    for (const chart of charts) chart.move(at);
  });
  const label = h("span", { class: "soft block" }, trajectory.label || "answer");
  const course = h("p", { class: "small" }, trajectoryNote(frames, input.truth));
  return h(
    "div",
    { class: "player" },
    h("h4", {}, word("segment", "Segment by segment"), label),
    h(
      "div",
      { class: "playing" },
      h("div", {}, hold, note),
      h("div", { class: "charts" }, charts.map((chart) => chart.element), course),
    ),
  );
}
