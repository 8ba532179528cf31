// One run: its curves as they grow, what it was told, what it left behind.

import { getJSON, getText, poll, setHidden, trouble } from "./api.js";
import { byId, command, el, empty, fill, table } from "./dom.js";
import { bytes, count, duration, epoch, fullNameOf, isQuiet, metric, moment, nameOf, ranked, scalar, short } from "./format.js";
import { about, noteForm, runLink, status } from "./parts.js";
import { runCurves } from "./run_curves.js";

const uuid = document.body.dataset.uuid;
const address = `/api/runs/${uuid}`;
const page = byId("run");
const places = {};
let known = null; // the other runs by UUID, for their names
let shown = null;
let note = null;
let curves = null;
let log = null;
let wasRunning = false;

function build() {
  for (const name of ["title", "error", "facts", "note", "family", "checkpoints", "files", "metrics", "config", "environment", "problems"]) places[name] = el("div");
  curves = runCurves(uuid);
  places.log = el("pre", { class: "log", tabindex: "0", role: "region", "aria-label": "Log" });
  places.logSaid = el("p", { class: "quiet" });
  const part = (title, ...content) => el("section", {}, el("h2", {}, title), content);
  fill(
    page,
    places.title,
    places.error,
    places.problems,
    el(
      "div",
      { class: "columns" },
      el("div", {}, part("Curves", curves.node), part("Log", places.log, places.logSaid), part("Configuration", places.config), part("Environment", places.environment)),
      el("div", { class: "side" }, part("Run", places.facts), part("Last values", places.metrics), part("Note", places.note), part("Teacher and students", places.family), part("Checkpoints", places.checkpoints), part("Files", places.files)),
    ),
  );
}

const facts = (pairs) => el("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]));

function renderTitle(run) {
  document.title = `${nameOf(run)} ${short(run.uuid)} · distillation`;
  const learned = run.parent || run.children.length;
  const hide = async () => {
    try {
      renderTitle({ ...shown, ...(await setHidden(uuid, !shown.hidden)) });
      renewed.now();
    } catch (error) {
      trouble(error.message);
    }
  };
  fill(
    places.title,
    el(
      "div",
      { class: "head title" },
      el("h1", {}, fullNameOf(run)),
      el("code", {}, run.uuid),
      status(run.status),
      el("span", { class: "quiet" }, run.hidden ? "hidden in the list" : ""),
      el(
        "div",
        { class: "actions" },
        run.parent ? el("a", { class: "button", href: about("compare", [run.uuid, run.parent]) }, "Compare with teacher") : null,
        learned ? el("a", { class: "button", href: about("transfer", run.parent ? [run.uuid] : [...run.children, run.uuid]) }, "What was transferred") : null,
        el("button", { type: "button", onclick: hide }, run.hidden ? "Show in the list" : "Hide in the list"),
      ),
    ),
    run.comment ? el("p", {}, run.comment) : null,
  );
}

function renderFacts(run) {
  const more = run.environment.facts || {};
  fill(
    places.facts,
    facts([
      ["experiment", el("a", { href: `/?experiment=${encodeURIComponent(run.experiment)}` }, run.experiment)],
      ["started", el("time", { datetime: run.created, title: run.created }, moment(run.created))],
      ["took", duration(run.created, run.ended ?? run.updated)],
      ["epoch", epoch(run)],
      ["images seen", count(run.step)],
      ["seed", run.seed === null ? null : scalar(run.seed)],
      ["parameters", more.parameters ? count(more.parameters) : null],
      ["MACs", more.macs ? count(more.macs) : null],
      ["size", more.bytes ? bytes(more.bytes) : null],
    ]),
  );
  const names = ranked(Object.keys(run.metrics)).filter((name) => !isQuiet(name));
  fill(places.metrics, names.length ? table(null, [{ title: "metric" }, { title: "value", number: true }], names.map((n) => [n, metric(n, run.metrics[n])]), { cards: false }) : el("p", { class: "quiet" }, "No metrics yet."));
}

function renderFamily(run) {
  const link = (other) => (known?.has(other) ? runLink(known.get(other)) : known ? el("span", {}, el("code", {}, short(other)), " (not in this store)") : el("a", { href: `/runs/${other}` }, el("code", {}, short(other))));
  const list = (uuids) => el("ul", { class: "plain" }, uuids.map((other) => el("li", {}, link(other))));
  fill(
    places.family,
    el("h3", {}, "Teacher"),
    run.teachers.length ? list(run.teachers) : el("p", { class: "quiet" }, run.environment.teacher ? "A model that is no recorded run." : "None: trained from the labels alone."),
    el("h3", {}, "Students"),
    run.children.length ? list(run.children) : el("p", { class: "quiet" }, "None yet. In an experiment: ", el("code", {}, `--teacher ${short(run.uuid)}`)),
    run.parent || run.children.length ? el("p", {}, el("a", { href: `/lineage?run=${run.uuid}` }, "Its family in the lineage")) : null,
  );
}

async function openFile(name) {
  const text = el("pre", { class: "log", tabindex: "0" }, "Reading …");
  const close = el("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const dialog = el("dialog", { "aria-label": name }, el("h2", {}, el("code", {}, name)), text, close);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  try {
    fill(text, await getText(`${address}/files/${encodeURIComponent(name)}`));
  } catch (error) {
    fill(text, error.message);
  }
}

function renderFiles(run) {
  const file = (f) => (f.shown ? el("button", { type: "button", class: "link", onclick: () => openFile(f.name) }, f.name) : f.name);
  fill(places.files, table(null, [{ title: "file" }, { title: "size", number: true }], run.files.map((f) => [file(f), bytes(f.size)]), { cards: false }));
  const columns = [{ title: "step", number: true }, { title: "weights" }, { title: "size", number: true }];
  const row = (c) => [`${count(c.step)}${c.best ? " (best)" : ""}`, c.weights.join(", "), bytes(c.bytes)];
  fill(places.checkpoints, run.checkpoints.length ? table(null, columns, run.checkpoints.map(row), { cards: false }) : el("p", { class: "quiet" }, "No checkpoint yet."));
}

function renderConfig(run) {
  const keys = Object.keys(run.config).sort();
  const search = el("input", { type: "search", placeholder: "Find a key", "aria-label": "Find in the configuration" });
  const rows = table(null, [{ title: "key" }, { title: "value" }], keys.map((key) => [key, el("code", {}, scalar(run.config[key]))]), { cards: false, className: "dense" });
  search.addEventListener("input", () => {
    for (const row of rows.querySelectorAll("tbody tr")) row.hidden = !row.textContent.toLowerCase().includes(search.value.toLowerCase());
  });
  fill(places.config, keys.length ? [el("div", { class: "tools" }, search), rows] : el("p", { class: "quiet" }, "None was recorded."));
  const { command: line, versions, facts: _, ...rest } = run.environment;
  const text = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : scalar(value));
  fill(
    places.environment,
    Array.isArray(line) ? command(line.join(" ")) : null,
    facts([...Object.entries(versions || {}), ...Object.entries(rest).filter(([, v]) => v !== null)].map(([k, v]) => [k, text(v)])),
  );
}

function renderNote(run) {
  // What is being written is not overwritten by what is polled
  if (note && note.text.value !== note.saved) return;
  note = noteForm(run, (entry) => { note.saved = entry.note; run.note = entry.note; });
  note.saved = run.note;
  fill(places.note, note.form);
}

async function renderLog() {
  let answer;
  try {
    answer = await getJSON(`${address}/log?tail=20000`);
  } catch {
    return; // the poll of the run says what is wrong
  }
  if (log === answer.text) return;
  const atEnd = places.log.scrollTop + places.log.clientHeight >= places.log.scrollHeight - 8;
  log = answer.text;
  fill(places.log, log);
  places.log.hidden = !log;
  fill(places.logSaid, log ? `${answer.truncated ? "The end of " : ""}${answer.name}` : "It wrote no log into its folder.");
  if (atEnd) places.log.scrollTop = places.log.scrollHeight;
}

const same = (a, b, keys) => a && keys.every((key) => JSON.stringify(a[key]) === JSON.stringify(b[key]));

async function renderRun(run) {
  if (!shown) build();
  const before = shown;
  shown = run;
  if (!same(before, run, ["status", "hidden", "name", "comment", "children"])) renderTitle(run);
  if (!same(before, run, ["updated", "status", "metrics"])) renderFacts(run);
  if (!same(before, run, ["note"])) renderNote(run);
  if (!same(before, run, ["files", "checkpoints"])) renderFiles(run);
  if (!same(before, run, ["config", "environment"])) renderConfig(run);
  fill(places.error, run.error ? el("p", { class: "failure" }, `It ended with an error: ${run.error}`) : null);
  fill(places.problems, run.problems.map((text) => el("p", { class: "failure" }, text)));
  curves.offer(run);
  renderLog();
  if (run.status === "running") wasRunning = true;
  if (!same(before, run, ["teachers", "children"])) {
    renderFamily(run);
    try {
      known = new Map((await getJSON("/api/runs")).runs.map((other) => [other.uuid, other]));
      renderFamily(shown);
    } catch { /* the links stand without names */ }
  }
}

/** The folder was removed while it was looked at. */
function gone(error) {
  curves?.stop();
  trouble();
  if (error.status !== 404) return fill(page, empty("The run cannot be read", el("p", {}, error.message)));
  document.title = "Run removed · distillation";
  return fill(
    page,
    empty(
      "This run is gone",
      el("p", {}, "Its folder was removed while this page was open", wasRunning ? ", though it was running" : "", ": ", el("code", {}, uuid), "."),
      el("p", {}, el("a", { href: "/" }, "All runs")),
    ),
  );
}

const renewed = poll(address, renderRun, { onGone: gone });
