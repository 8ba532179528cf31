// What a student has of its teacher that it would not have learned alone.

import { getJSON, poll, trouble } from "./api.js";
import { Chart, curveTools, showCurves } from "./chart.js";
import { byId, command, el, empty, fill, table } from "./dom.js";
import { nameOf, number, own, percent, short, signed } from "./format.js";
import { about, asked, runLink, swatch } from "./parts.js";
import { showClasses, showDifference, showReliability } from "./evaluation.js";

const OVER_TIME = [
  ["agreement", "Agreement with the teacher"],
  ["kl", "KL(teacher ‖ student), nats"],
  ["ece", "Calibration error (ECE)"],
  ["accuracy", "Accuracy"],
];
const ROLE_COLOURS = { teacher: 0, plain: 7, distilled: 1 };

const page = byId("transfer");
const places = { summary: el("div", { class: "summary" }), time: el("div", { class: "charts" }), classes: el("div"), reliability: el("div", { class: "charts" }), confusion: el("div", { class: "charts" }) };
const charts = new Map();
const curves = new Map();
const tools = curveTools(() => drawCurves());
let shown = null;

const chart = (key, title, place, size) => {
  if (!charts.has(key)) {
    charts.set(key, new Chart(title, { size }));
    place.append(charts.get(key).figure);
  }
  return charts.get(key);
};

/** Each run its colour, by role; a second one of a role takes a free one. */
function coloured(runs) {
  const taken = new Set();
  const free = [2, 3, 4, 5, 6, 0, 1, 7];
  return runs.map((run) => {
    let colour = ROLE_COLOURS[run.role];
    if (taken.has(colour)) colour = free.find((c) => !taken.has(c)) ?? taken.size;
    taken.add(colour);
    const alone = runs.filter((other) => other.role === run.role).length === 1;
    return { ...run, colour, title: alone ? run.role : `${run.role} ${short(run.uuid)}` };
  });
}

function renderSummary(runs, problems) {
  const columns = ["run", "role", "epoch", "accuracy", "agreement with teacher", "KL(teacher ‖ student)", "calibration error"].map((title, i) => ({ title, number: i > 1 }));
  const rows = runs.map((run) => {
    const e = run.evaluation;
    const first = el("span", {}, swatch(run.colour), runLink(run), run.seed === null ? null : el("small", {}, ` seed ${run.seed}`));
    return e
      ? [first, run.role, number(e.epoch), percent(e.accuracy), percent(e.agreement), number(e.kl), percent(e.ece)]
      : [first, run.role, "–", "no evaluation", "–", "–", "–"];
  });
  const plain = runs.find((run) => run.role === "plain" && run.evaluation);
  const gains = runs.filter((run) => run.role === "distilled" && run.evaluation && plain);
  const points = (value) => `${value > 0 ? "+" : ""}${signed((100 * value).toFixed(2))} points`;
  const without = runs.filter((run) => !run.evaluation);
  fill(
    places.summary,
    table(null, columns, rows),
    gains.map((run) =>
      el("p", {}, `${nameOf(run)} ${short(run.uuid)} against the same model trained alone: accuracy ${points(run.evaluation.accuracy - plain.evaluation.accuracy)}, calibration error ${points(run.evaluation.ece - plain.evaluation.ece)}.`)),
    runs.every((run) => run.role !== "plain") && runs.some((run) => run.role === "distilled")
      ? el("p", { class: "quiet" }, "There is no run of the same model, epochs and experiment without a teacher to hold the student against.")
      : null,
    without.length
      ? el("p", { class: "quiet" }, `Without an evaluation yet: ${without.map((run) => `${nameOf(run)} ${short(run.uuid)}`).join(", ")}. Experiments write it after each epoch; for other runs, distill evaluate RUN --save does.`)
      : null,
    problems.map((p) => el("p", { class: "failure" }, `${p.path}: ${p.message}`)),
  );
}

function drawCurves() {
  if (!shown) return;
  for (const [head, title] of OVER_TIME) {
    const lines = shown.runs.flatMap((run) => {
      const name = `${head}.${run.evaluation?.split || "test"}`;
      const found = own(curves.get(run.uuid), name);
      return found ? [{ name, title: run.title, colour: run.colour, ...found }] : [];
    });
    if (lines.length) showCurves(chart(`time ${head}`, title, places.time), lines, tools.state);
  }
  // In their order, whichever run's curves came first
  const wanted = OVER_TIME.map(([head]) => charts.get(`time ${head}`)?.figure).filter(Boolean);
  if (wanted.some((figure, i) => places.time.children[i] !== figure)) fill(places.time, wanted);
}

function renderEvaluations(runs) {
  const evaluated = runs.filter((run) => run.evaluation);
  const key = JSON.stringify(evaluated);
  if (renderEvaluations.key === key) return;
  renderEvaluations.key = key;
  if (!evaluated.length) return;
  const classes = evaluated[0].evaluation.classes;
  const alike = evaluated.filter((run) => JSON.stringify(run.evaluation.classes) === JSON.stringify(classes));
  showClasses(chart("classes", "Accuracy of each class", places.classes, "tall"), classes, alike);
  for (const run of evaluated) showReliability(chart(`bins ${run.uuid}`, `Reliability, ${run.title} (${nameOf(run)} ${short(run.uuid)})`, places.reliability), run);
  for (const student of alike.filter((run) => run.role === "distilled")) {
    for (const role of ["plain", "teacher"]) {
      const other = alike.find((run) => run.role === role);
      if (!other) continue;
      const title = `Confusion, ${nameOf(student)} ${short(student.uuid)} − ${role} ${short(other.uuid)}`;
      showDifference(chart(`confusion ${student.uuid} ${role}`, title, places.confusion, "square"), classes, student, other);
    }
  }
}

function follow(run) {
  if (curves.has(run.uuid)) return;
  curves.set(run.uuid, {});
  const names = OVER_TIME.map(([head]) => `${head}.${run.evaluation?.split || "test"}`).join(",");
  const watched = poll(
    `/api/runs/${run.uuid}/curves?points=600&names=${names}`,
    (data) => {
      curves.set(run.uuid, data.curves);
      drawCurves();
      if (shown.runs.find((r) => r.uuid === run.uuid)?.status !== "running") watched.stop();
    },
    { onGone: () => {} },
  );
}

function render(data) {
  if (!shown) {
    const part = (title, about, ...content) => el("section", {}, el("h2", {}, title), el("p", { class: "quiet" }, about), content);
    fill(
      page,
      places.summary,
      part("Over time", "On the test images, after each epoch.", tools.node, places.time),
      part("Class by class", "Where the student gained, and whether it errs where its teacher does.", places.classes),
      part("Calibration", "Of the images on which a model was this sure, the share it had right. On the diagonal its confidence can be trusted; below it, it is too sure.", places.reliability),
      part("Confusion, difference", "How many more (orange) or fewer (blue) test images of a class the student gives each answer. On the diagonal more is better, elsewhere fewer.", places.confusion),
    );
  }
  shown = { ...data, runs: coloured(data.runs) };
  renderSummary(shown.runs, data.problems);
  renderEvaluations(shown.runs);
  for (const [name, place] of Object.entries(places)) if (name !== "summary" && name !== "time") place.parentElement.hidden = !place.children.length;
  shown.runs.forEach(follow);
  drawCurves();
}

/** The students one can ask about. */
function renderChoice(students, chosen) {
  const select = el(
    "select",
    { id: "student", onchange: (event) => event.target.value && location.assign(about("transfer", [event.target.value])) },
    chosen.length === 1 && students.some((s) => s.uuid === chosen[0]) ? null : el("option", { value: "" }, `${chosen.length} selected`),
    students.map((run) => el("option", { value: run.uuid }, `${nameOf(run)} ${short(run.uuid)} (${run.experiment}${run.seed === null ? "" : `, seed ${run.seed}`})`)),
  );
  select.value = chosen.length === 1 && students.some((s) => s.uuid === chosen[0]) ? chosen[0] : "";
  fill(byId("choice"), el("label", { class: "check" }, "student ", select));
}

function nothing(title, ...more) {
  trouble();
  fill(page, empty(title, ...more, el("p", {}, el("a", { href: "/" }, "All runs"))));
}

async function start() {
  let students;
  try {
    students = (await getJSON("/api/runs")).runs.filter((run) => run.parent && !run.hidden);
  } catch (error) {
    trouble(error.message);
    setTimeout(start, 4000);
    return;
  }
  trouble();
  const chosen = asked().length ? asked() : students.slice(0, 1).map((run) => run.uuid);
  if (!chosen.length) {
    nothing("No student has had a teacher yet", el("p", {}, "What was transferred is measured on a distilled run. On digits, teacher and students take a minute:"), command("python -m experiments.digits"));
    return;
  }
  if (students.length) renderChoice(students, chosen);
  poll(about("api/transfer", chosen), render, {
    onGone: (error) => nothing(error.status === 404 ? "This run is not here" : "These runs cannot be shown", el("p", {}, error.message)),
  });
}

start();
