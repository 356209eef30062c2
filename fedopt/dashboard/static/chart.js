// A line chart as SVG: scales, ticks, lines, and a read-out under the pointer.

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 320, LEFT = 58, RIGHT = 16, TOP = 12, BOTTOM = 40;
const FEW = 15;  // points up to which each gets a dot

export function element(name, attributes = {}, ...children) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return Number.isInteger(value) ? String(value) : value.toPrecision(4);
}

function tickText(value) {
  const plain = Number(value.toPrecision(6));
  return Math.abs(plain) >= 1e6 || (plain && Math.abs(plain) < 1e-4) ? plain.toExponential() : plain.toLocaleString("en-US", { maximumFractionDigits: 6 });
}

function step(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].find((factor) => rough <= factor * power * (1 + 1e-9)) * power;
}

function scale(low, high, start, stop, isLog) {
  if (!(high > low)) {
    const room = Math.abs(low) * 0.05 || 0.5;
    [low, high] = isLog ? [low / 1.1, high * 1.1] : [low - room, high + room];
  }
  const on = isLog ? Math.log10 : (value) => value;
  const place = (value) => start + (on(value) - on(low)) / (on(high) - on(low)) * (stop - start);
  const ticks = [];
  if (isLog) {
    const few = high / low < 200;
    for (let power = Math.floor(on(low)); power <= Math.ceil(on(high)); power += 1) {
      for (const factor of few ? [1, 2, 5] : [1]) ticks.push(factor * 10 ** power);
    }
  } else {
    const gap = step((high - low) / 6);
    for (let i = Math.ceil(low / gap - 1e-9); i <= high / gap + 1e-9; i += 1) ticks.push(i * gap);
  }
  return { place, ticks: ticks.filter((tick) => tick >= low * (low > 0 ? 0.999999 : 1) && tick <= high * 1.000001) };
}

// lines: [{ name, colour, dash, x: [...], y: [...] }], null where nothing was measured.
export function draw(box, lines, { xLabel, yLabel, isLog }) {
  const points = lines.map((line) => line.x
    .map((x, i) => [x, line.y[i]])
    .filter(([x, y]) => x !== null && y !== null && (!isLog || y > 0)));
  const all = points.flat();
  if (!all.length) {
    const says = lines.length ? `No selected run has measured ${yLabel}${isLog ? " above 0" : ""} yet.` : "Select runs in the table.";
    box.replaceChildren(Object.assign(document.createElement("p"), { textContent: says }));
    return;
  }
  const width = Math.max(340, box.clientWidth);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const bounds = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const x = scale(...bounds(xs), LEFT, width - RIGHT, false);
  const y = scale(...bounds(ys), HEIGHT - BOTTOM, TOP + 12, isLog);
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${yLabel} by ${xLabel} of ${lines.map((line) => line.name).join(", ")}` });
  const gaps = x.ticks.map((t) => `M${x.place(t)} ${TOP + 12}V${HEIGHT - BOTTOM}`).concat(y.ticks.map((t) => `M${LEFT} ${y.place(t)}H${width - RIGHT}`));
  svg.append(element("path", { class: "grid", d: gaps.join("") }), element("path", { class: "axis", d: `M${LEFT} ${HEIGHT - BOTTOM}H${width - RIGHT}` }));
  for (const tick of x.ticks) svg.append(element("text", { class: "mid", x: x.place(tick), y: HEIGHT - BOTTOM + 16 }, tickText(tick)));
  for (const tick of y.ticks) svg.append(element("text", { class: "end", x: LEFT - 6, y: y.place(tick) + 4 }, tickText(tick)));
  svg.append(element("text", { class: "mid", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6 }, xLabel), element("text", { x: 2, y: 12 }, yLabel));
  lines.forEach((line, i) => {
    const path = points[i].map(([a, b]) => `${x.place(a).toFixed(1)} ${y.place(b).toFixed(1)}`).join("L");
    if (path) svg.append(element("path", { class: `line c${line.colour} d${line.dash}`, d: `M${path}`, "data-run": line.name }));
    if (points[i].length <= FEW) {
      for (const [a, b] of points[i]) svg.append(element("circle", { class: `dot c${line.colour}`, cx: x.place(a), cy: y.place(b), r: 2.6 }));
    }
  });
  box.replaceChildren(svg);
  follow(box, svg, width, lines, points, x, xLabel);
}

function follow(box, svg, width, lines, points, x, xLabel) {
  const readout = Object.assign(document.createElement("div"), { className: "readout", hidden: true });
  const cursor = element("path", { class: "cursor" });
  svg.append(cursor);
  box.append(readout);
  svg.addEventListener("pointermove", (event) => {
    const unit = (event.clientX - svg.getBoundingClientRect().left) * width / svg.clientWidth;
    const near = points.map((line) => line.reduce((best, p) => (best === null || Math.abs(x.place(p[0]) - unit) < Math.abs(x.place(best[0]) - unit) ? p : best), null));
    const first = near.filter(Boolean).reduce((a, b) => (Math.abs(x.place(a[0]) - unit) <= Math.abs(x.place(b[0]) - unit) ? a : b));
    cursor.setAttribute("d", `M${x.place(first[0])} ${TOP + 12}V${HEIGHT - BOTTOM}`);
    const rows = near.map((p, i) => p && Object.assign(document.createElement("div"), { textContent: `${lines[i].name}: ${short(p[1])} (${short(p[0])})` })).filter(Boolean);
    readout.replaceChildren(Object.assign(document.createElement("b"), { textContent: `${xLabel} ${short(first[0])}` }), ...rows);
    readout.hidden = false;
    const place = x.place(first[0]) * svg.clientWidth / width;
    readout.style.left = `${place + 14 + readout.offsetWidth > svg.clientWidth ? Math.max(0, place - 14 - readout.offsetWidth) : place + 14}px`;
    readout.style.top = "16px";
  });
  svg.addEventListener("pointerleave", () => {
    readout.hidden = true;
    cursor.removeAttribute("d");
  });
}
