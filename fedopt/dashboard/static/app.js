// The dashboard: a table of runs that is kept up to date by server-sent events, and their curves.
import { draw, element, short } from "/static/chart.js";

const get = (id) => document.getElementById(id);
const runs = new Map();       // id -> what the server knows of the run
const curves = new Map();     // id -> its curves, with the version they are of
const chosen = new Map();     // id -> its look: a number that stays while it is selected
let sorted = { key: "began", down: true };
let untouched = true;         // nothing was selected by hand yet

const COLUMNS = [
  { key: "chosen", title: "show", words: true },
  { key: "id", title: "run", words: true },
  { key: "status", title: "status", words: true },
  { key: "strategy", title: "strategy", words: true },
  { key: "data", title: "data", words: true },
  { key: "seed", title: "seed" },
  { key: "round", title: "round" },
  { key: "test_accuracy", title: "accuracy" },
  { key: "best_test_accuracy", title: "best" },
  { key: "test_loss", title: "loss" },
  { key: "MB", title: "MB" },
  { key: "sim_seconds", title: "virtual s" },
  { key: "wall_seconds", title: "real s" },
  { key: "seconds_left", title: "left" },
  { key: "began", title: "began", words: true },
];

function node(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// The words of the address after "#" keep what is shown, so that a page can be reloaded or shared.
function restore() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const id of words.getAll("run")) select(id, true);
  untouched = chosen.size === 0;
  get("filter").value = words.get("filter") ?? "";
  return { metric: words.get("metric") ?? "test_accuracy", axis: words.get("axis") ?? "rounds" };
}

function remember() {
  const words = new URLSearchParams([...chosen.keys()].map((id) => ["run", id]));
  if (get("filter").value) words.set("filter", get("filter").value);
  words.set("metric", get("metric").value);
  words.set("axis", get("axis").value);
  history.replaceState(null, "", `#${words}`);
}

function select(id, isOn) {
  if (!isOn) {
    chosen.delete(id);
    return;
  }
  const taken = new Set(chosen.values());
  let look = 0;
  while (taken.has(look)) look += 1;
  chosen.set(id, look);
}

function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 60) return value.toPrecision(2);
  const whole = Math.round(value);
  const minutes = Math.floor(whole / 60);
  const rest = String(whole % 60).padStart(2, "0");
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

function cell(run, key) {
  switch (key) {
    case "chosen": {
      const box = node("input", { type: "checkbox", checked: chosen.has(run.id) });
      box.setAttribute("aria-label", `show ${run.id}`);
      box.addEventListener("change", () => {
        untouched = false;
        select(run.id, box.checked);
        show();
      });
      return [box];
    }
    case "id": {
      const link = node("a", { href: `/report/${run.id.split("/").map(encodeURIComponent).join("/")}`, target: "_blank", rel: "noopener", textContent: run.id });
      return run.error ? [link, node("span", { className: "error", textContent: run.error.split("\n")[0] })] : [link];
    }
    case "status": return [node("span", { className: `status ${run.status}`, textContent: run.status })];
    case "round": {
      if (run.round === undefined) return [];
      if (run.status !== "running") return [run.rounds ? `${run.round}/${run.rounds}` : String(run.round)];
      const bar = node("progress", { max: run.rounds || 1, value: Math.min(run.round, run.rounds || 1) });
      bar.setAttribute("aria-label", `rounds of ${run.id}`);
      return run.rounds ? [bar, `${run.round}/${run.rounds}`] : [String(run.round)];
    }
    case "seconds_left": return [seconds(run.seconds_left)];
    case "wall_seconds": return [seconds(run.wall_seconds)];
    case "began": return [run.began ? new Date(run.began * 1000).toLocaleString("sv").slice(0, 16) : ""];
    case "seed": return [run.seed === null || run.seed === undefined ? "" : String(run.seed)];
    default: return [typeof run[key] === "number" ? short(run[key]) : run[key] ?? ""];
  }
}

function matching() {
  const words = get("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (run) => [run.id, run.status, run.strategy, run.data, run.model, `seed=${run.seed}`].join(" ").toLowerCase();
  const found = [...runs.values()].filter((run) => words.every((word) => text(run).includes(word)));
  const value = (run) => (sorted.key === "chosen" ? Number(chosen.has(run.id)) : run[sorted.key]);
  return found.sort((a, b) => {
    const [one, two] = [value(a), value(b)];
    if (one === two) return a.id < b.id ? -1 : 1;
    if (one === null || one === undefined) return 1;  // what is not known comes last
    if (two === null || two === undefined) return -1;
    return (one < two ? -1 : 1) * (sorted.down ? -1 : 1);
  });
}

function table() {
  const found = matching();
  get("count").textContent = `${found.length} of ${runs.size} runs`;
  get("empty").hidden = runs.size > 0;
  get("heads").replaceChildren(...COLUMNS.map(({ key, title, words }) => {
    const head = node("th", { scope: "col", className: words ? "words" : "" });
    if (sorted.key === key) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    const button = node("button", { type: "button", textContent: title + (sorted.key === key ? (sorted.down ? " ▾" : " ▴") : "") });
    button.addEventListener("click", () => {
      sorted = { key, down: sorted.key === key ? !sorted.down : true };
      table();
    });
    head.append(button);
    return head;
  }));
  const focused = document.activeElement?.getAttribute("aria-label");
  get("runs").replaceChildren(...found.map((run) => {
    const row = node("tr", { className: chosen.has(run.id) ? "chosen" : "" });
    row.append(...COLUMNS.map(({ key, words }) => node("td", { className: `${words ? "words" : ""} ${key === "id" ? "name" : ""}` }, ...cell(run, key))));
    return row;
  }));
  if (focused?.startsWith("show ")) get("runs").querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

function options(list, names, wanted) {
  const now = [...list.options].map((option) => option.value);
  const keep = list.value || wanted;
  if (now.join("\n") !== names.join("\n")) list.replaceChildren(...names.map((name) => node("option", { value: name, textContent: name.replaceAll("_", " ") })));
  list.value = names.includes(keep) ? keep : names[0] ?? "";
}

function plot() {
  const shown = [...chosen].filter(([id]) => curves.has(id));
  const metrics = [...new Set(shown.flatMap(([id]) => Object.keys(curves.get(id).metrics)))];
  const axes = shown.length ? Object.keys(curves.get(shown[0][0]).x).filter((axis) => shown.some(([id]) => curves.get(id).x[axis].some((v) => v !== null))) : ["rounds"];
  options(get("metric"), metrics.length ? metrics : [wanted.metric], wanted.metric);
  options(get("axis"), axes, wanted.axis);
  const [metric, axis] = [get("metric").value, get("axis").value];
  const lines = shown.map(([id, look]) => ({
    name: id,
    colour: look % 8,
    dash: (look + Math.floor(look / 8)) % 4,
    x: curves.get(id).x[axis] ?? [],
    y: curves.get(id).metrics[metric] ?? [],
  }));
  draw(get("chart"), lines, { xLabel: axis, yLabel: metric.replaceAll("_", " "), isLog: get("log").checked });
  get("legend").replaceChildren(...lines.map((line) => {
    const swatch = element("svg", { class: "swatch", viewBox: "0 0 26 12", "aria-hidden": "true" }, element("path", { class: `line c${line.colour} d${line.dash}`, d: "M1 6H25" }));
    const values = line.y.filter((value) => value !== null);
    return node("li", {}, swatch, values.length ? `${line.name}: ${short(values.at(-1))}` : `${line.name}: not measured`);
  }));
}

async function load(id) {
  const known = runs.get(id);
  if (!known || curves.get(id)?.version === known.version) return;
  const answer = await fetch(`/api/curves/${id.split("/").map(encodeURIComponent).join("/")}`);
  if (answer.ok) curves.set(id, await answer.json());
}

async function show() {
  table();
  await Promise.all([...chosen.keys()].map(load));
  plot();
  remember();
}

const wanted = restore();
options(get("axis"), [wanted.axis], wanted.axis);
options(get("metric"), [wanted.metric], wanted.metric);

const stream = new EventSource("/api/events");
stream.addEventListener("runs", (event) => {
  const news = JSON.parse(event.data);
  for (const run of news.runs) runs.set(run.id, run);
  for (const id of news.gone) {
    runs.delete(id);
    curves.delete(id);
    chosen.delete(id);
  }
  get("root").textContent = news.root;
  if (untouched) {  // until somebody chooses: what is running, else the newest
    const newest = [...runs.values()].sort((a, b) => (b.began ?? 0) - (a.began ?? 0));
    const running = newest.filter((run) => run.status === "running").slice(0, 4);
    const ids = (running.length ? running : newest.slice(0, 1)).map((run) => run.id);
    for (const id of [...chosen.keys()]) if (!ids.includes(id) && running.length) select(id, false);
    for (const id of ids) if (!chosen.has(id)) select(id, true);
  }
  show();
});
stream.addEventListener("open", () => {
  get("link").textContent = "live";
  get("link").className = "live";
});
stream.addEventListener("error", () => {
  get("link").textContent = "connection lost; trying again";
  get("link").className = "lost";
});

get("filter").addEventListener("input", () => {
  table();
  remember();
});
for (const id of ["metric", "axis", "log"]) {
  get(id).addEventListener("change", () => {
    plot();
    remember();
  });
}
get("none").addEventListener("click", () => {
  untouched = false;
  chosen.clear();
  show();
});
addEventListener("resize", plot);
