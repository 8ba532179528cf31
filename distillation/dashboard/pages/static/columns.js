// What can stand in a column of the list, and which of it one wants to see.

import { el, fill, memory } from "./dom.js";
import { count, duration, epoch, moment, metric, nameOf, own, parts, ranked, scalar, short } from "./format.js";
import { status } from "./parts.js";

function progress(run) {
  if (run.status !== "running" || !run.epochs) return epoch(run);
  const bar = el("progress", { class: "bar-of", max: run.epochs, "aria-label": "epochs" });
  bar.value = Math.min((run.epoch ?? -1) + 1, run.epochs);
  return el("span", {}, epoch(run), bar);
}

function note(run, { edit }) {
  const title = run.note ? run.note : "add a note";
  const label = run.note ? `Edit the note: ${run.note}` : `Add a note to ${nameOf(run)} ${short(run.uuid)}`;
  return el("button", { type: "button", class: `edit${run.note ? " set" : ""}`, "aria-label": label, title, onclick: edit }, run.note || "+ note");
}

const seconds = (run) => (run.ended ? new Date(run.ended) - new Date(run.created) : null);

const FACTS = [
  { id: "status", title: "status", value: (r) => r.status, cell: (r) => status(r.status) },
  { id: "experiment", title: "experiment", value: (r) => r.experiment, cell: (r) => r.experiment },
  { id: "created", title: "started", down: true, value: (r) => r.created, cell: (r) => el("time", { datetime: r.created, title: r.created }, moment(r.created)) },
  { id: "took", title: "took", number: true, down: true, value: seconds, cell: (r) => duration(r.created, r.ended ?? (r.status === "running" ? r.updated : null)) },
  { id: "epoch", title: "epoch", number: true, down: true, value: (r) => r.epoch, cell: progress },
  { id: "step", title: "images seen", number: true, down: true, value: (r) => r.step, cell: (r) => count(r.step) },
  { id: "seed", title: "seed", number: true, value: (r) => r.seed, cell: (r) => scalar(r.seed ?? undefined) },
  { id: "teacher", title: "teacher", value: (r) => r.parent, cell: (r) => (r.parent ? el("a", { href: `/runs/${r.parent}` }, el("code", {}, short(r.parent))) : "–") },
  { id: "comment", title: "comment", text: true, value: (r) => r.comment, cell: (r) => el("span", { title: r.comment }, r.comment) },
  { id: "note", title: "note", text: true, value: (r) => r.note, cell: note },
];
const USUAL = ["status", "experiment", "created", "epoch", "seed", "teacher", "note"];

const SHOWN = /(^|\.)(seed|epochs|max_epochs?)$/; // settings that are facts of the run already

const lastValue = (name) => ({
  id: `metric ${name}`,
  title: name,
  number: true,
  down: true,
  value: (r) => own(r.metrics, name),
  cell: (r) => metric(name, own(r.metrics, name)),
});
const LONG = 24; // characters of a value that gets several lines
const setting = (key) => ({
  id: `config ${key}`,
  title: key,
  number: true,
  value: (r) => own(r.config, key),
  cell: (r) => {
    const text = scalar(own(r.config, key));
    return text.length > LONG ? el("span", { class: "long" }, text) : text;
  },
});

const names = (runs, part) => new Set(runs.flatMap((run) => Object.keys(run[part])));
let cached = null;

/** Every column that the runs offer, and the run itself. */
export function columnsOf(runs) {
  if (cached?.runs === runs) return cached.columns;
  const metrics = ranked(names(runs, "metrics")).map(lastValue);
  const config = [...names(runs, "config")].sort().map(setting);
  const run = { id: "name", title: "run", value: (r) => `${nameOf(r)} ${r.uuid}` };
  cached = { runs, columns: [run, ...FACTS, ...metrics, ...config] };
  return cached.columns;
}

/** The settings that tell runs of the same name apart; those that do so for most names first. */
function telling(runs) {
  const alike = new Map();
  for (const run of runs) {
    const key = `${run.experiment}/${run.name}`;
    if (!alike.has(key)) alike.set(key, []);
    alike.get(key).push(run);
  }
  const times = new Map();
  for (const group of alike.values()) {
    for (const key of names(group, "config")) {
      const differs = new Set(group.map((run) => JSON.stringify(own(run.config, key)))).size > 1;
      if (differs && !SHOWN.test(key)) times.set(key, (times.get(key) || 0) + 1);
    }
  }
  return [...times.keys()].sort((a, b) => times.get(b) - times.get(a) || a.localeCompare(b));
}

const LEAST = 3; // metrics that are shown unasked
const MOST = 6;

/** The first metric of each run, so that none shows nothing; then of each kind the split most have. */
function telltales(runs) {
  const order = ranked(names(runs, "metrics"));
  const has = (run, name) => Object.hasOwn(run.metrics, name);
  const times = (name) => runs.filter((run) => has(run, name)).length;
  const firsts = new Map();
  for (const run of runs) {
    const first = order.find((name) => has(run, name));
    if (first) firsts.set(first, (firsts.get(first) || 0) + 1);
  }
  const shown = [...firsts.keys()].sort((a, b) => firsts.get(b) - firsts.get(a)).slice(0, MOST);
  const kinds = new Map(shown.map((name) => [parts(name)[0], null]));
  for (const name of order) {
    const [kind, split] = parts(name);
    const known = kinds.get(kind);
    // A value of the training nearly every run has, but it tells less
    if (known === undefined || (known && split !== "train" && times(name) > times(known))) kinds.set(kind, name);
  }
  const others = [...kinds.values()].filter(Boolean);
  return [...shown, ...others.slice(0, Math.max(0, LEAST - shown.length))];
}

function usual(runs) {
  const several = new Set(runs.map((run) => run.experiment)).size > 1;
  const facts = USUAL.filter((id) => several || id !== "experiment");
  const most = telltales(runs).map((name) => `metric ${name}`);
  const comments = runs.some((run) => run.comment) ? ["comment"] : [];
  const settings = telling(runs).slice(0, 2).map((key) => `config ${key}`);
  return [...facts, ...most, ...settings, ...comments];
}

/** The columns to show: those that were chosen, else the usual ones; the note stands last. */
export function chosenColumns(runs) {
  const seen = runs.filter((run) => !run.hidden);
  const wanted = memory.get("columns", null) || usual(seen.length ? seen : runs);
  const all = columnsOf(runs).slice(1);
  const found = all.filter((c) => wanted.includes(c.id));
  return [...found.filter((c) => !c.text), ...found.filter((c) => c.text)];
}

/** The menu of columns in `details`; `changed` is called after each choice. */
export function columnMenu(details, changed) {
  const panel = details.querySelector(".panel");
  const search = el("input", { type: "search", placeholder: "Find a column", "aria-label": "Find a column" });
  const groups = el("div");
  const reset = el("button", { type: "button" }, "Usual columns");
  panel.append(search, groups, reset);
  let known = "";
  let runs = [];

  const checked = () => chosenColumns(runs).map((c) => c.id);
  const set = (id, on) => {
    const now = memory.get("columns", null) || checked();
    memory.set("columns", on ? [...now, id] : now.filter((other) => other !== id));
    changed();
  };
  function draw() {
    const on = new Set(checked());
    const of = (title, columns) =>
      columns.length
        ? el(
            "fieldset",
            {},
            el("legend", {}, title),
            el("div", { class: "options" }, columns.map((c) =>
              el("label", {}, el("input", { type: "checkbox", checked: on.has(c.id), value: c.id, onchange: (e) => set(c.id, e.target.checked) }), el("span", {}, c.title)))),
          )
        : null;
    const all = columnsOf(runs).slice(1);
    const those = (head) => all.filter((c) => c.id.startsWith(head));
    fill(groups, of("Run", FACTS), of("Metrics, last value", those("metric ")), of("Configuration", those("config ")));
    find();
  }
  function find() {
    const text = search.value.toLowerCase();
    for (const label of groups.querySelectorAll("label")) label.hidden = !label.textContent.toLowerCase().includes(text);
    for (const group of groups.children) group.hidden = !group.querySelector("label:not([hidden])");
  }
  search.addEventListener("input", find);
  reset.addEventListener("click", () => { memory.set("columns", null); changed(); draw(); });
  details.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { details.open = false; details.querySelector("summary").focus(); }
  });
  document.addEventListener("click", (event) => { if (!details.contains(event.target)) details.open = false; });
  return {
    offer(now) {
      runs = now;
      const key = columnsOf(runs).map((c) => c.id).join("\n");
      if (key !== known) { known = key; draw(); }
    },
  };
}
