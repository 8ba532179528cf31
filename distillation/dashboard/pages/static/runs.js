// All runs: filtered, sorted, with the columns one wants, kept up to date.

import { poll, setHidden, trouble } from "./api.js";
import { columnsOf, chosenColumns, columnMenu } from "./columns.js";
import { breakable, byId, command, el, empty, fill } from "./dom.js";
import { fullNameOf, nameOf, short } from "./format.js";
import { about, noteDialog } from "./parts.js";

const STATUSES = ["running", "completed", "interrupted", "crashed"];
const MOST = 200; // that the server compares at once
const query = new URLSearchParams(location.search);

const state = {
  runs: [],
  text: query.get("text") || "",
  experiment: query.get("experiment") || "",
  statuses: new Set((query.get("status") || "").split(",").filter((s) => STATUSES.includes(s))),
  hidden: query.get("hidden") === "yes",
  sort: query.get("sort") || "created",
  down: query.get("order") !== "up",
  columns: [],
  selected: new Set(),
  last: null,
};
const rows = new Map(); // uuid → {row, run, on, text}
let body = null;
let head = "";
// The next page has charts, and to read their script takes a second the first time
const whenIdle = self.requestIdleCallback ?? setTimeout;
let ahead = null;

/** The address says what is shown: it can be sent to somebody, and comes back with "back". */
function remember() {
  const said = new URLSearchParams();
  if (state.text) said.set("text", state.text);
  if (state.experiment) said.set("experiment", state.experiment);
  if (state.statuses.size) said.set("status", [...state.statuses].join(","));
  if (state.hidden) said.set("hidden", "yes");
  if (state.sort !== "created") said.set("sort", state.sort);
  if (!state.down) said.set("order", "up");
  history.replaceState(null, "", said.size ? `?${said}` : location.pathname);
}

const haystacks = new WeakMap();
function haystack(run) {
  if (!haystacks.has(run)) {
    const config = Object.entries(run.config).map(([key, value]) => `${key}=${value}`);
    const facts = [run.uuid, run.experiment, run.name, run.status, run.comment, run.note, `seed=${run.seed}`];
    haystacks.set(run, [...facts, ...config].join("\n").toLowerCase());
  }
  return haystacks.get(run);
}

function matching() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  return state.runs.filter(
    (run) =>
      (state.hidden || !run.hidden) &&
      (!state.experiment || run.experiment === state.experiment) &&
      (!state.statuses.size || state.statuses.has(run.status)) &&
      words.every((word) => haystack(run).includes(word)),
  );
}

/** Numbers by size, the rest as text; what has no value comes last, up or down. */
function sorted(runs) {
  const column = columnsOf(state.runs).find((c) => c.id === state.sort) || { value: (r) => r.created };
  const sign = state.down ? -1 : 1;
  const none = (v) => v === null || v === undefined || v === "";
  const order = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return runs
    .map((run) => [column.value(run), run])
    .sort(([a], [b]) => none(a) - none(b) || (none(a) ? 0 : sign * order(a, b)))
    .map(([, run]) => run);
}

function sortBy(id) {
  const column = columnsOf(state.runs).find((c) => c.id === id);
  state.down = state.sort === id ? !state.down : Boolean(column?.down);
  state.sort = id;
  render();
}

function heading(column) {
  const is = state.sort === column.id;
  return el(
    "th",
    {
      scope: "col",
      role: "columnheader",
      class: column.number ? "number" : null,
      "aria-sort": is ? (state.down ? "descending" : "ascending") : null,
    },
    el("button", { type: "button", onclick: () => sortBy(column.id), "data-sort": column.id }, breakable(column.title)),
  );
}

function pick(run, event) {
  const shown = sorted(matching()).map((r) => r.uuid);
  const on = event.target.checked;
  const [from, to] = [shown.indexOf(state.last), shown.indexOf(run.uuid)].sort((a, b) => a - b);
  const which = event.shiftKey && from >= 0 ? shown.slice(from, to + 1) : [run.uuid];
  for (const uuid of which) on ? state.selected.add(uuid) : state.selected.delete(uuid);
  state.last = run.uuid;
  render();
}

const replaced = (entry) => {
  state.runs = state.runs.map((run) => (run.uuid === entry.uuid ? entry : run));
  render();
};

function rowOf(run) {
  const on = state.selected.has(run.uuid);
  const box = el("input", {
    type: "checkbox",
    checked: on,
    "aria-label": `Select ${nameOf(run)} ${short(run.uuid)}`,
    onclick: (event) => pick(run, event),
  });
  const cells = state.columns.map((column) => {
    const attributes = { role: "cell", "data-column": column.title, class: column.number ? "number" : column.text ? "text" : null };
    return el("td", attributes, column.cell(run, { edit: () => noteDialog(run, replaced) }));
  });
  const link = el("a", { href: `/runs/${run.uuid}`, title: nameOf(run) === fullNameOf(run) ? null : fullNameOf(run) }, nameOf(run));
  return el(
    "tr",
    { role: "row", "aria-selected": on ? "true" : null, class: run.hidden ? "faded" : null, "data-uuid": run.uuid },
    el("td", { role: "cell", class: "pick" }, box),
    el("th", { scope: "row", role: "rowheader" }, link, " ", el("code", {}, short(run.uuid)), run.hidden ? el("small", {}, " hidden") : null),
    cells,
  );
}

function frame() {
  const key = JSON.stringify([state.columns.map((c) => c.id), state.sort, state.down]);
  if (body?.isConnected && key === head) return;
  const focused = document.activeElement?.dataset?.sort;
  head = key;
  rows.clear();
  body = el("tbody", { role: "rowgroup" });
  const columns = [{ id: "name", title: "run" }, ...state.columns];
  const first = el("td", { role: "cell", class: "pick" }, el("span", { class: "unseen" }, "selected"));
  const top = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, first, columns.map(heading)));
  const made = el("table", { class: "runs cards", role: "table", "aria-label": "Runs" }, top, body);
  fill(byId("list"), el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Runs" }, made));
  if (focused) document.querySelector(`[data-sort="${CSS.escape(focused)}"]`)?.focus();
}

/** Only rows that changed are made anew: a reader's focus and a long list stay as they are. */
function renderRows(shown) {
  frame();
  const wanted = shown.map((run) => {
    const on = state.selected.has(run.uuid);
    const known = rows.get(run.uuid);
    if (known?.run === run && known.on === on) return known.row;
    const text = JSON.stringify(run);
    if (known?.text === text && known.on === on) {
      known.run = run;
      return known.row;
    }
    const row = rowOf(run);
    if (known) {
      const at = [...known.row.querySelectorAll("a, button, input")].indexOf(document.activeElement);
      known.row.replaceWith(row); // in its place: a table made anew takes long to lay out
      row.querySelectorAll("a, button, input")[at]?.focus();
    }
    rows.set(run.uuid, { row, run, on, text });
    return row;
  });
  if (wanted.length !== body.children.length || wanted.some((row, i) => body.children[i] !== row)) {
    const active = document.activeElement;
    fill(body, wanted);
    if (active?.isConnected && active !== document.activeElement) active.focus();
  }
}

function renderSelection() {
  const place = byId("selection");
  const known = new Map(state.runs.map((run) => [run.uuid, run]));
  state.selected.forEach((uuid) => known.has(uuid) || state.selected.delete(uuid));
  const uuids = [...state.selected];
  place.hidden = !uuids.length;
  if (!uuids.length) return;
  const reveal = uuids.every((uuid) => known.get(uuid).hidden);
  const go = (page, title, least) => {
    const wrong = uuids.length < least ? `select ${least} or more` : uuids.length > MOST ? `at most ${MOST}` : "";
    const attributes = wrong ? { "aria-disabled": "true", role: "link", title: wrong } : { href: about(page, uuids) };
    return el("a", { class: "button main", ...attributes }, title);
  };
  const hide = async () => {
    try {
      for (const uuid of uuids) replaced(await setHidden(uuid, !reveal));
      state.selected.clear();
    } catch (error) {
      trouble(error.message);
    }
    render();
  };
  fill(
    place,
    el("strong", {}, `${uuids.length} selected`),
    go("compare", "Compare", 2),
    go("transfer", "Transfer", 1),
    el("button", { type: "button", onclick: hide }, reveal ? "Show again" : "Hide"),
    el("button", { type: "button", onclick: () => { state.selected.clear(); render(); } }, "Clear"),
  );
}

function renderTools() {
  const counts = (status) => state.runs.filter((r) => r.status === status && (state.hidden || !r.hidden)).length;
  const chips = byId("statuses");
  const focused = document.activeElement?.dataset?.status;
  fill(
    chips,
    STATUSES.filter((s) => counts(s) || state.statuses.has(s)).map((s) =>
      el(
        "button",
        {
          type: "button",
          "data-status": s,
          "aria-pressed": String(state.statuses.has(s)),
          onclick: () => { state.statuses.delete(s) || state.statuses.add(s); render(); },
        },
        el("span", { class: `status ${s}` }, `${s} ${counts(s)}`),
      ),
    ),
  );
  if (focused) chips.querySelector(`[data-status="${focused}"]`)?.focus();
  const experiments = [...new Set(state.runs.map((r) => r.experiment))].sort();
  choices(byId("experiment"), [["", "all experiments"], ...experiments.map((e) => [e, e])], state.experiment);
  byId("experiment").hidden = experiments.length < 2 && !state.experiment;
  const orders = [{ id: "name", title: "run" }, ...state.columns].flatMap(({ id, title }) => [[`${id} down`, `${title} ↓`], [`${id} up`, `${title} ↑`]]);
  choices(byId("sort"), orders, `${state.sort} ${state.down ? "down" : "up"}`);
  const hidden = state.runs.filter((r) => r.hidden).length;
  byId("hidden").checked = state.hidden;
  byId("hidden").parentElement.hidden = !hidden && !state.hidden;
  fill(byId("hidden").nextElementSibling, `hidden runs (${hidden})`);
}

function choices(select, wanted, value) {
  const key = JSON.stringify(wanted);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    fill(select, wanted.map(([v, title]) => el("option", { value: v }, title)));
  }
  select.value = value;
}

function clear() {
  Object.assign(state, { text: "", experiment: "" });
  state.statuses.clear();
  byId("text").value = "";
  render();
}

function render() {
  remember();
  const some = state.runs.length > 0;
  byId("filters").hidden = !some;
  byId("hint").hidden = state.runs.length < 2;
  if (!some) {
    fill(byId("count"));
    body = null;
    fill(
      byId("list"),
      empty(
        "No runs yet",
        el("p", {}, "Nothing is recorded in ", el("code", {}, document.body.dataset.root), ". Five real trainings on digits take about a minute:"),
        command("python -m experiments.digits"),
        el("p", { class: "quiet" }, "They appear here as they begin. Runs that lie elsewhere: ", el("code", {}, "distill dashboard --runs ROOT"), "."),
      ),
    );
    renderSelection();
    return;
  }
  renderTools();
  const shown = sorted(matching());
  const total = state.runs.filter((r) => state.hidden || !r.hidden).length;
  const said = shown.length === total ? `${total}` : `${shown.length} of ${total}`;
  if (byId("count").textContent !== said) fill(byId("count"), said);
  if (shown.length) {
    renderRows(shown);
  } else {
    body = null;
    const why = total ? "No run matches the filters" : "All runs are hidden";
    const way = total
      ? el("button", { type: "button", onclick: clear }, "Clear the filters")
      : el("button", { type: "button", onclick: () => { state.hidden = true; render(); } }, "Show hidden runs");
    fill(byId("list"), empty(why, way));
  }
  renderSelection();
}

function renderProblems(problems) {
  const title = `${problems.length} ${problems.length === 1 ? "thing" : "things"} could not be read`;
  const list = problems.map((p) => el("li", {}, el("code", {}, p.path), ": ", p.message));
  fill(byId("problems"), problems.length ? el("details", { class: "more" }, el("summary", {}, title), el("ul", {}, list)) : null);
}

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("text").value = state.text;
byId("text").addEventListener("input", (event) => { state.text = event.target.value; render(); });
byId("experiment").addEventListener("change", (event) => { state.experiment = event.target.value; render(); });
byId("hidden").addEventListener("change", (event) => { state.hidden = event.target.checked; render(); });
byId("sort").addEventListener("change", (event) => {
  const at = event.target.value.lastIndexOf(" ");
  Object.assign(state, { sort: event.target.value.slice(0, at), down: event.target.value.endsWith(" down") });
  render();
});
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (event.key === "/" && !typing) { event.preventDefault(); byId("text").focus(); }
});

const menu = columnMenu(byId("columns"), () => {
  state.columns = chosenColumns(state.runs);
  render();
});
poll("/api/runs", (data) => {
  state.runs = data.runs;
  state.columns = chosenColumns(state.runs);
  menu.offer(state.runs);
  renderProblems(data.problems);
  render();
  if (body) ahead ??= whenIdle(() => import("./chart.js"));
});
