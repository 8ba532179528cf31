// Runs side by side: curves overlaid, what their configurations differ in, mean and spread over seeds.

import { poll, trouble } from "./api.js";
import { Chart, curveTools, showCurves } from "./chart.js";
import { byId, el, empty, fill, table } from "./dom.js";
import { cut, isMaximised, isQuiet, meanStd, nameOf, own, parts, ranked, scalar, short } from "./format.js";
import { about, asked, runLink, status, swatch } from "./parts.js";

const page = byId("compare");
const uuids = asked();
const charts = new Map();
const curves = new Map(); // uuid → {poll, updated, data}
const tools = curveTools(() => drawCurves());
const places = { legend: el("div"), groups: el("div"), charts: el("div", { class: "charts" }), differences: el("div") };
let compared = null;
let built = false;
let whole = false; // the training metrics too

function build() {
  if (built) return;
  built = true;
  const part = (title, ...content) => el("section", {}, el("h2", {}, title), content);
  fill(
    page,
    places.legend,
    part("Metrics, mean ± standard deviation over seeds", places.groups),
    part("Curves", tools.node, places.charts),
    part("Configuration, where it differs", places.differences),
  );
}

/** A run of the same name needs more than its name: what sets it apart. */
function titles(runs) {
  return new Map(runs.map((run) => [run.uuid, `${nameOf(run)} ${short(run.uuid)}`]));
}

function renderLegend({ runs, missing }) {
  const without = (run) => about("compare", uuids.filter((uuid) => uuid !== run.uuid));
  fill(
    places.legend,
    el(
      "ul",
      { class: "legend large" },
      runs.map((run, i) =>
        el(
          "li",
          {},
          swatch(i),
          runLink(run),
          run.seed === null ? null : el("span", { class: "quiet" }, ` seed ${run.seed} `),
          run.status === "completed" ? null : status(run.status),
          runs.length > 1 ? el("a", { class: "quiet leave", href: without(run), "aria-label": `Leave out ${nameOf(run)} ${short(run.uuid)}`, title: "leave out" }, " ×") : null,
        ),
      ),
      runs.some((run) => run.parent) ? el("li", {}, el("a", { class: "button", href: about("transfer", runs.map((r) => r.uuid)) }, "What was transferred")) : null,
    ),
    missing.length ? el("p", { class: "failure" }, `Not in this store: ${missing.map(short).join(", ")}`) : null,
  );
}

/** The values by which the groups differ: what a row is called. */
function marks(groups) {
  const keys = [...new Set(groups.flatMap((g) => Object.keys(g.config)))].sort();
  const differ = keys.filter((key) => new Set(groups.map((g) => JSON.stringify(own(g.config, key)))).size > 1);
  return (group) => differ.filter((key) => Object.hasOwn(group.config, key)).map((key) => cut(`${key}=${scalar(group.config[key])}`));
}

function renderGroups({ runs, groups }) {
  const all = ranked(new Set(groups.flatMap((g) => Object.keys(g.metrics))));
  const tested = all.filter((name) => parts(name)[1] !== "train");
  const names = whole || !tested.length ? all : tested;
  const box = el("input", { type: "checkbox", checked: whole, onchange: (e) => { whole = e.target.checked; renderGroups(compared); } });
  const index = new Map(runs.map((run, i) => [run.uuid, i]));
  const marked = marks(groups);
  const best = Object.fromEntries(
    names.map((name) => {
      const means = groups.map((g) => own(g.metrics, name)?.mean).filter((mean) => mean !== undefined);
      return [name, means.length > 1 ? (isMaximised(name) ? Math.max(...means) : Math.min(...means)) : null];
    }),
  );
  const cell = (group, name) => {
    const found = own(group.metrics, name);
    if (!found) return "–";
    const some = found.n === group.counted.length ? "" : ` (n = ${found.n})`;
    const text = meanStd(name, found) + some;
    return found.mean === best[name] ? el("span", { class: "best" }, text, el("span", { class: "unseen" }, " best")) : text;
  };
  const head = (group) => {
    const apart = marked(group);
    return [
      group.runs.map((uuid) => swatch(index.get(uuid))),
      el("strong", {}, nameOf(group)),
      apart.length ? el("div", {}, el("small", {}, apart.slice(0, 6).join(", "), apart.length > 6 ? ` and ${apart.length - 6} more` : "")) : null,
    ].flat().filter(Boolean);
  };
  const waiting = (group) => group.runs.length - group.counted.length;
  const rows = groups.map((group) => [
    el("span", {}, head(group)),
    `${group.counted.length}${waiting(group) ? ` (+ ${waiting(group)} unfinished)` : ""}`,
    ...names.map((name) => cell(group, name)),
  ]);
  const columns = [{ title: "runs alike but for the seed" }, { title: "n", number: true }, ...names.map((title) => ({ title, number: true }))];
  fill(
    places.groups,
    table(null, columns, rows, { className: "groups" }),
    tested.length && tested.length < all.length ? el("label", { class: "check" }, box, " training metrics too") : null,
    el("p", { class: "quiet" }, "Last values. n counts the runs; the spread is the sample's standard deviation, of two or more."),
  );
}

function renderDifferences({ runs, differences }) {
  if (!differences.length) {
    const why = runs.length > 1 ? "Every value is the same in all of them." : "One run differs from nothing.";
    fill(places.differences, el("p", { class: "quiet" }, why));
    return;
  }
  const named = titles(runs);
  const columns = [
    { title: "key" },
    ...runs.map((run, i) => ({ title: named.get(run.uuid), head: el("span", {}, swatch(i), nameOf(run), " ", el("code", {}, short(run.uuid))) })),
  ];
  const rows = differences.map(({ key, values }) => [el("code", {}, key), ...runs.map((run) => scalar(values[run.uuid]))]);
  fill(places.differences, table(null, columns, rows));
}

function drawCurves() {
  if (!compared) return;
  const named = titles(compared.runs);
  const names = ranked(new Set([...curves.values()].flatMap((c) => Object.keys(c.data)))).filter((n) => !isQuiet(n));
  for (const name of names) {
    if (!charts.has(name)) charts.set(name, new Chart(name));
    const lines = compared.runs.flatMap((run, i) => {
      const found = own(curves.get(run.uuid)?.data, name);
      return found ? [{ name, title: named.get(run.uuid), colour: i, ...found }] : [];
    });
    showCurves(charts.get(name), lines, { ...tools.state, named: false });
  }
  for (const [name, chart] of charts) {
    if (names.includes(name)) continue;
    chart.remove();
    charts.delete(name);
  }
  // In the order of reading, also when a metric came later
  const wanted = names.map((name) => charts.get(name).figure);
  if (wanted.some((figure, i) => places.charts.children[i] !== figure)) fill(places.charts, wanted);
  if (!names.length) fill(places.charts, el("p", { class: "quiet" }, "No metrics yet."));
}

/** A run that is trained is asked for its curves again and again, another one when it changed. */
function follow(run) {
  const known = curves.get(run.uuid) || { data: {} };
  curves.set(run.uuid, known);
  if (known.updated === run.updated || known.poll) return;
  known.updated = run.updated;
  known.poll = poll(
    `/api/runs/${run.uuid}/curves?points=600`,
    (data) => {
      known.data = data.curves;
      drawCurves();
      if (compared.runs.find((r) => r.uuid === run.uuid)?.status !== "running") end();
    },
    { onGone: () => end() },
  );
  const end = () => { known.poll?.stop(); known.poll = null; };
}

function render(data) {
  build();
  const key = JSON.stringify(data.runs.map((run) => [run.uuid, run.status, run.seed]));
  const changed = !compared || JSON.stringify(compared.runs.map((run) => [run.uuid, run.status, run.seed])) !== key;
  compared = data;
  if (changed) {
    renderLegend(data);
    renderDifferences(data);
  }
  renderGroups(data);
  data.runs.forEach(follow);
  drawCurves();
}

function nothing(title, ...more) {
  trouble();
  fill(page, empty(title, ...more, el("p", {}, "Select runs in the list by their boxes, then press Compare."), el("p", {}, el("a", { href: "/" }, "All runs"))));
}

if (uuids.length) {
  poll(about("api/compare", uuids), render, { onGone: (error) => {
    curves.forEach((c) => c.poll?.stop());
    nothing(error.status === 404 ? "None of these runs is here" : "These runs cannot be compared", el("p", {}, error.message));
  } });
} else {
  nothing("No runs to compare");
}
