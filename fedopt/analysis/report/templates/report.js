// Read-outs: under the pointer (or by the arrow keys) the row of the figure's table that is nearest.
"use strict";
const readout = document.getElementById("readout");
const NS = "http://www.w3.org/2000/svg";

function value(text) {
  const plain = text.replaceAll(",", "").trim();
  return plain === "" ? NaN : Number(plain);
}

function rowsOf(svg) {
  if (svg.rows) return svg.rows;
  const table = svg.closest("figure").querySelector("table");
  const heads = [...table.tHead.rows[0].cells];
  const x = heads.findIndex((head) => head.dataset.a === svg.dataset.axis);
  const series = heads.map((head, i) => [i, head.dataset.s, head.textContent]).filter((h) => h[1] !== undefined);
  svg.rows = [...table.tBodies[0].rows].map((row) => ({
    x: value(row.cells[x].textContent),
    at: heads[x].textContent + " " + row.cells[x].textContent,
    cells: series.map(([i, s, name]) => ({ s, name, text: row.cells[i].textContent })),
  })).filter((row) => Number.isFinite(row.x));
  return svg.rows;
}

function show(svg, index) {
  const rows = rowsOf(svg);
  if (!rows.length) return;
  svg.at = Math.max(0, Math.min(rows.length - 1, index));
  const row = rows[svg.at];
  const [left, top, right, bottom] = svg.dataset.box.split(",").map(Number);
  const [low, high] = svg.dataset.x.split(",").map(Number);
  const place = left + (row.x - low) / (high - low) * (right - left);
  let line = svg.querySelector(".cursor");
  if (!line) {
    line = document.createElementNS(NS, "path");
    line.setAttribute("class", "cursor");
    svg.append(line);
  }
  line.setAttribute("d", `M${place} ${top}V${bottom}`);
  const hidden = (s) => svg.closest("figure").querySelector(`.t${s}:not(:checked)`);
  const head = document.createElement("b");
  head.textContent = row.at;
  const items = row.cells.filter((cell) => cell.text && !hidden(cell.s)).map((cell) => {
    const item = document.createElement("div");
    item.textContent = `${cell.name}: ${cell.text}`;
    return item;
  });
  readout.replaceChildren(head, ...items);
  readout.hidden = false;
  const box = svg.getBoundingClientRect();
  const x = box.left + place * box.width / svg.viewBox.baseVal.width;
  const width = readout.offsetWidth;
  const beside = x + 14 + width > document.documentElement.clientWidth ? Math.max(4, x - 14 - width) : x + 14;
  readout.style.left = `${beside + window.scrollX}px`;
  readout.style.top = `${box.top + window.scrollY + 20}px`;
}

function hide(svg) {
  readout.hidden = true;
  svg.at = undefined;
  svg.querySelector(".cursor")?.remove();
}

function nearest(svg, event) {
  const box = svg.getBoundingClientRect();
  const [left, , right] = svg.dataset.box.split(",").map(Number);
  const [low, high] = svg.dataset.x.split(",").map(Number);
  const unit = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
  const x = low + (unit - left) / (right - left) * (high - low);
  const rows = rowsOf(svg);
  let best = 0;
  rows.forEach((row, i) => { if (Math.abs(row.x - x) < Math.abs(rows[best].x - x)) best = i; });
  return best;
}

for (const svg of document.querySelectorAll("svg[data-box][data-axis]")) {
  svg.tabIndex = 0;
  svg.addEventListener("pointermove", (event) => show(svg, nearest(svg, event)));
  svg.addEventListener("pointerleave", () => hide(svg));
  svg.addEventListener("blur", () => hide(svg));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(svg, (svg.at ?? (step > 0 ? -1 : rowsOf(svg).length)) + step);
  });
}
