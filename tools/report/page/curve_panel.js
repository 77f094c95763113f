// A panel of curves: a drawing, a cursor that reads all curves at a step, and a legend that shows and hides them.

const FIRST_PANELS = 6;
const isLogarithmic = new Map(); // what the reader has chosen, by panel
const hidden = new Set(); // curves that the reader has hidden

// The last known value at or before a step, else the first.
function readingAt(curve, step) {
  let index = -1;
  curve.steps.forEach((at, i) => curve.values[i] !== null && (at <= step || index < 0) && (index = i));
  return index < 0 ? null : { step: curve.steps[index], value: curve.values[index] };
}

const swatch = (curve) =>
  svg(
    "svg",
    { class: "swatch", viewBox: "0 0 22 8", "aria-hidden": "true" },
    svg("path", { d: "M0 4h22", stroke: curve.colour, "stroke-dasharray": curve.dash }),
  );

const keyOf = (curve) => JSON.stringify([curve.panel, curve.run, curve.name]);

function legendEntry(curve, reading) {
  const key = keyOf(curve);
  const flip = () => {
    if (!hidden.delete(key)) hidden.add(key);
    renderCurves();
  };
  const label = [swatch(curve), isComparison() && runLetter(curve.run), h("span", {}, curve.name), reading];
  return h(
    "li",
    {},
    toggle(label, !hidden.has(key), flip, { class: "entry", title: "Show or hide", "data-key": key }),
  );
}

// Loss falls by powers of ten; other values are drawn as they are, unless the reader asks.
function axisOf(name, curves) {
  const values = curves.flatMap((curve) => curve.values.filter((value) => value !== null));
  const [least, most] = extent(values);
  const canBeLog = values.length > 0 && least > 0;
  const isLog = canBeLog && (isLogarithmic.get(name) ?? (/loss/i.test(name) && most > 20 * least));
  return { canBeLog, isLog };
}

function axisButton(name, isLog) {
  const flip = () => {
    isLogarithmic.set(name, !isLog);
    renderCurves();
  };
  const title = "Switch between a linear and a logarithmic axis";
  return button(
    isLog ? "log" : "linear",
    flip,
    { class: "small-button controls", title, "data-key": `axis ${name}` },
  );
}

function drawCurves(curves, scale) {
  const { width, height, left, right, bottom } = FRAME;
  const rules = scale.ticks.map((tick) => `M${left} ${scale.y(tick)}H${width - right}`).join("");
  const line = (curve) => (
    { d: linePath(curve, scale), stroke: curve.colour, "stroke-dasharray": curve.dash }
  );
  return [
    svg("path", { class: "rules", d: rules }),
    scale.ticks.map(
      (tick) => svg("text", { x: left - 6, y: scale.y(tick) + 3.5, "text-anchor": "end" }, short(tick)),
    ),
    niceTicks(0, scale.lastStep, 3).map((tick) =>
      svg("text", { x: scale.x(tick), y: height - bottom + 16, "text-anchor": "middle" }, count(tick)),
    ),
    curves.map((curve) => svg("path", { class: "curve", ...line(curve) })),
  ];
}

function drawCursor(step, found, curves, scale) {
  const points = found.map(
    (reading, i) => reading && svg(
      "circle",
      { cx: scale.x(reading.step), cy: scale.y(reading.value), r: 3, fill: curves[i].colour },
    ),
  );
  return [svg("path", { d: `M${scale.x(step)} ${FRAME.top}V${FRAME.height - FRAME.bottom}` }), points];
}

// Moves the cursor by pointer and by key; `read` shows the step of an index.
function followCursor(drawing, steps, scale, read) {
  const last = steps.length - 1;
  let current = last;
  const move = (index) => read((current = Math.max(0, Math.min(index, last))));
  const moveToPointer = (event) => {
    const place = drawing.getBoundingClientRect();
    const step = scale.stepOf(((event.clientX - place.left) / place.width) * FRAME.width);
    move(steps.reduce((best, at, i) => (Math.abs(at - step) < Math.abs(steps[best] - step) ? i : best), 0));
  };
  const stride = Math.max(1, Math.round(last / 50));
  const keys = { ArrowLeft: -1, ArrowRight: 1, PageDown: -stride, PageUp: stride, Home: -last, End: last };
  drawing.addEventListener("pointermove", moveToPointer);
  drawing.addEventListener("pointerdown", moveToPointer);
  drawing.addEventListener("pointerleave", () => document.activeElement !== drawing && move(last));
  drawing.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    event.stopPropagation();
    move(current + keys[event.key]);
  });
  move(last);
}

function curvePanel(name, all) {
  const shown = all.filter((curve) => !hidden.has(keyOf(curve)));
  const curves = shown.length ? shown : all;
  const { canBeLog, isLog } = axisOf(name, curves);
  const scale = scales(curves, isLog);
  const steps = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const cursor = svg("g", { class: "cursor" });
  const drawing = svg("svg", {
    class: "panel",
    viewBox: `0 0 ${FRAME.width} ${FRAME.height}`,
    tabindex: 0,
    role: "slider",
    "aria-label": `${name}: step`,
    "aria-valuemin": steps[0],
    "aria-valuemax": steps.at(-1),
    "data-key": `panel ${name}`,
  });
  drawing.append(...[drawCurves(curves, scale), cursor].flat(2));
  const stepText = h("span", { class: "soft step" });
  const readings = curves.map(() => h("b", {}));
  followCursor(drawing, steps, scale, (index) => {
    const found = curves.map((curve) => readingAt(curve, steps[index]));
    stepText.textContent = `step ${count(steps[index])}`;
    readings.forEach((reading, i) => (reading.textContent = found[i] ? short(found[i].value) : "–"));
    replaceContent(cursor, drawCursor(steps[index], found, curves, scale));
    drawing.setAttribute("aria-valuenow", steps[index]);
    const said = curves.map((curve, i) => `${curve.name} ${readings[i].textContent}`);
    drawing.setAttribute("aria-valuetext", `step ${steps[index]}: ${said.join(", ")}`);
  });
  return h(
    "figure",
    { class: "curves" },
    h("figcaption", {}, h("b", {}, name), canBeLog && axisButton(name, isLog), stepText),
    drawing,
    h("ul", { class: "legend" }, all.map((curve) => legendEntry(curve, readings[curves.indexOf(curve)]))),
  );
}

function renderCurves() {
  const found = panels();
  const drawn = [...found].map(([name, curves]) => curvePanel(name, curves));
  const isOpen = byId("curves").querySelector("details")?.open;
  const rest = drawn.slice(FIRST_PANELS);
  replaceContent(
    byId("curves"),
    found.size > 0 && [
      h("h2", {}, "Training"),
      h("div", { class: "panels" }, drawn.slice(0, FIRST_PANELS)),
      rest.length > 0 && h(
        "details",
        { open: isOpen },
        h("summary", {}, `${rest.length} further`),
        h("div", { class: "panels" }, rest),
      ),
    ],
  );
}
