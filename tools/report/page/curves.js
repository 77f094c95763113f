// Curves of the trainings: which there are, on which axes, as which lines.

const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const FRAME = { width: 360, height: 196, left: 46, right: 10, top: 8, bottom: 24 };

function panels() {
  const found = new Map();
  for (const run of shownRuns()) {
    for (const curve of report.runs[run].curves) {
      if (!curve.values.some((value) => value !== null)) continue;
      if (!found.has(curve.panel)) found.set(curve.panel, []);
      found.get(curve.panel).push({ run, ...curve });
    }
  }
  for (const curves of found.values()) {
    const names = [...new Set(curves.map((curve) => curve.name))];
    const isOne = new Set(curves.map((curve) => curve.run)).size === 1;
    for (const curve of curves) {
      const index = names.indexOf(curve.name);
      curve.colour = `var(--run-${(isOne ? index : curve.run) % 6})`;
      curve.dash = DASHES[(isOne ? Math.floor(index / 6) : index) % DASHES.length];
    }
  }
  return found;
}

function niceTicks(least, most, about = 4) {
  const rough = (most - least) / about || Math.abs(most) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999) ?? 10);
  const first = Math.ceil(least / step - 1e-9);
  const numTicks = Math.floor(most / step + 1e-6) - first + 1;
  return Array.from({ length: numTicks }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(least, most) {
  const ticks = [];
  const factors = most / least > 30 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power++) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= least * 0.999 && tick <= most * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

// Not Math.min(...values), which long curves overflow.
const extent = (values) => [
  values.reduce((a, b) => Math.min(a, b), Infinity),
  values.reduce((a, b) => Math.max(a, b), -Infinity),
];

function scales(curves, isLog) {
  const values = curves.flatMap((curve) => curve.values.filter((value) => value !== null));
  let [least, most] = extent(values);
  const lastStep = Math.max(...curves.map((curve) => curve.steps.at(-1)), 1);
  if (isLog) [least, most] = [least / 1.1, most * 1.1];
  else {
    if (least > 0 && least < 0.6 * most) least = 0;
    const pad = (most - least || Math.abs(most) || 1) * 0.05;
    [least, most] = [least === 0 ? 0 : least - pad, most + pad];
  }
  const { width, height, left, right, top, bottom } = FRAME;
  const onLog = (value) => Math.log(value / least) / Math.log(most / least);
  const share = isLog ? onLog : (value) => (value - least) / (most - least);
  return {
    lastStep,
    x: (step) => left + ((width - left - right) * step) / lastStep,
    y: (value) => height - bottom - (height - top - bottom) * share(value),
    ticks: isLog ? logTicks(least, most) : niceTicks(least, most),
    stepOf: (x) => ((x - left) / (width - left - right)) * lastStep,
  };
}

function linePath(curve, scale) {
  let d = "";
  let isDown = false;
  curve.steps.forEach((step, i) => {
    if (curve.values[i] === null) isDown = false;
    else {
      const point = `${scale.x(step).toFixed(1)} ${scale.y(curve.values[i]).toFixed(1)}`;
      d += isDown ? `L${point}` : `M${point}h0`; // h0 draws a point that stands alone
      isDown = true;
    }
  });
  return d;
}
