// Which student came from which teacher.

import { poll } from "./api.js";
import { byId, command, el, empty, fill, svg, table } from "./dom.js";
import { metric, nameOf, short } from "./format.js";
import { arranged, families } from "./layout.js";
import { runLink, status } from "./parts.js";

const BOX = [210, 46];
const page = byId("lineage");
const wanted = new URLSearchParams(location.search).get("run");
let shown = null;
let hidden = false;
let width = 0;

const measured = ({ metric: found }) => (found ? `${found.name} ${metric(found.name, found.value)}` : "–");

/** Text that fits: an SVG does not cut it off by itself. */
const fitting = (text, room, each = 7) => (text.length * each <= room ? text : `${text.slice(0, Math.max(1, Math.floor(room / each) - 1))}…`);

function label(node, teachers, students) {
  const last = node.metric ? `, ${measured(node)}` : "";
  const family = `${teachers ? `, learned from ${teachers}` : ""}${students ? `, taught ${students}` : ""}`;
  return node.status === "missing"
    ? `Teacher ${short(node.uuid)}, not in this store${family}`
    : `${nameOf(node)} ${short(node.uuid)}, ${node.status}${last}${family}`;
}

function drawNode(node, [x, y], w, text) {
  const h = BOX[1];
  const missing = node.status === "missing";
  const second = missing ? "not in this store" : node.metric ? measured(node) : node.status;
  const shapes = [
    svg("rect", { x, y, width: w, height: h, rx: 6 }),
    svg("circle", { class: "mark", cx: x + 13, cy: y + 16, r: 4 }),
    svg("text", { x: x + 24, y: y + 20 }, fitting(missing ? "missing teacher" : nameOf(node), w - 100)),
    svg("text", { class: "id", x: x + w - 10, y: y + 20, "text-anchor": "end" }, short(node.uuid)),
    svg("text", { class: "second", x: x + 24, y: y + 37 }, fitting(second, w - 34, 6)),
  ];
  const attributes = { class: node.status, "data-uuid": node.uuid, "aria-label": text };
  return missing
    ? svg("g", { ...attributes, role: "img" }, ...shapes)
    : svg("a", { ...attributes, href: `/runs/${node.uuid}` }, svg("title", {}, text), ...shapes);
}

function drawFamily(family, room) {
  const place = arranged(family, BOX, room);
  const drawing = svg("svg", { width: place.width, height: place.height + 4, viewBox: `-2 -2 ${place.width + 4} ${place.height + 4}`, role: "group", "aria-label": `Lineage of ${family.nodes.length} runs` });
  const edges = family.edges.map((edge) => {
    const [x, y] = place.at[edge.student];
    const tip = svg("path", { class: "tip", d: `M${x - 7} ${y + 19}L${x} ${y + 23}L${x - 7} ${y + 27}Z`, "aria-hidden": "true" });
    const line = svg("path", { class: "edge", d: place.path(edge), "data-teacher": edge.teacher, "data-student": edge.student, "aria-hidden": "true" });
    drawing.append(line, tip);
    return { ...edge, line };
  });
  const of = (uuid, from, to) => family.edges.filter((e) => e[from] === uuid).map((e) => family.nodes.find((n) => n.uuid === e[to]));
  const said = (nodes) => nodes.map((n) => `${nameOf(n)} ${short(n.uuid)}`).join(", ");
  const drawn = new Map();
  // Read and tabbed through from teachers to students
  const order = [...family.nodes].sort((a, b) => place.at[a.uuid][0] - place.at[b.uuid][0] || place.at[a.uuid][1] - place.at[b.uuid][1]);
  for (const node of order) {
    const shape = drawNode(node, place.at[node.uuid], place.boxes, label(node, said(of(node.uuid, "student", "teacher")), said(of(node.uuid, "teacher", "student"))));
    const light = (on) => {
      shape.classList.toggle("lit", on);
      for (const e of edges) if (e.teacher === node.uuid || e.student === node.uuid) e.line.classList.toggle("lit", on);
    };
    for (const [event, on] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]]) shape.addEventListener(event, () => light(on));
    drawn.set(node.uuid, shape);
    drawing.append(shape);
  }
  drawing.addEventListener("keydown", (event) => {
    const uuid = event.target.closest("[data-uuid]")?.dataset.uuid;
    if (!uuid) return;
    const [teacher] = of(uuid, "student", "teacher");
    const beside = teacher ? of(teacher.uuid, "teacher", "student").map((n) => n.uuid) : order.filter((n) => place.at[n.uuid][0] === place.at[uuid][0]).map((n) => n.uuid);
    beside.sort((a, b) => place.at[a][1] - place.at[b][1]);
    const at = beside.indexOf(uuid);
    const next = { ArrowLeft: teacher?.uuid, ArrowRight: of(uuid, "teacher", "student")[0]?.uuid, ArrowUp: beside[at - 1], ArrowDown: beside[at + 1] }[event.key];
    if (!next) return;
    event.preventDefault();
    drawn.get(next).focus();
  });
  return el("div", { class: "family" }, drawing);
}

function asTable(nodes, edges) {
  const known = new Map(nodes.map((node) => [node.uuid, node]));
  const link = (node) => (node.status === "missing" ? `${short(node.uuid)} (not in this store)` : runLink(node));
  const rows = edges.map(({ teacher, student }) => [link(known.get(student)), status(known.get(student).status), measured(known.get(student)), link(known.get(teacher)), measured(known.get(teacher))]);
  const columns = ["student", "status", "student's metric", "teacher", "teacher's metric"].map((title) => ({ title }));
  return el("details", { class: "more" }, el("summary", {}, "As a table"), table("Students and their teachers", columns, rows));
}

function render() {
  const { nodes: all, edges: allEdges } = shown;
  const focused = document.activeElement?.dataset?.uuid;
  const open = page.querySelector("details")?.open;
  const nodes = all.filter((node) => hidden || !node.hidden || node.uuid === wanted);
  const known = new Set(nodes.map((n) => n.uuid));
  const edges = allEdges.filter((e) => known.has(e.teacher) && known.has(e.student));
  const missing = new Set(nodes.filter((n) => n.status === "missing" && !edges.some((e) => e.teacher === n.uuid)).map((n) => n.uuid));
  const found = families(nodes.filter((n) => !missing.has(n.uuid)), edges);
  const tied = found.filter((family) => family.edges.length);
  const alone = found.filter((family) => !family.edges.length).flatMap((family) => family.nodes);
  // The family that was asked for stands first
  tied.sort((a, b) => b.nodes.some((n) => n.uuid === wanted) - a.nodes.some((n) => n.uuid === wanted));
  width = page.clientWidth;
  const many = all.filter((node) => node.hidden).length;
  const box = el("input", { type: "checkbox", checked: hidden, onchange: (e) => { hidden = e.target.checked; render(); } });
  fill(
    page,
    many ? el("div", { class: "tools" }, el("label", { class: "check" }, box, ` hidden runs (${many})`)) : null,
    all.length ? null : empty("No runs yet", el("p", {}, "Train a large model, and a small one from it, on digits:"), command("python -m experiments.digits")),
    all.length && !tied.length ? empty("No student has had a teacher yet", el("p", {}, "Give a run as the teacher of the next one, by its UUID:"), command("python -m experiments.digits.distill --teacher RUN")) : null,
    tied.map((family) => drawFamily(family, width)),
    tied.length ? asTable(nodes, edges) : null,
    alone.length ? el("section", {}, el("h2", {}, "Runs without teacher or students"), el("ul", { class: "plain alone" }, alone.map((node) => el("li", {}, status(node.status), " ", runLink(node), node.metric ? el("small", {}, ` ${measured(node)}`) : null)))) : null,
  );
  if (open) page.querySelector("details").open = true;
  if (focused) page.querySelector(`a[data-uuid="${CSS.escape(focused)}"]`)?.focus();
  if (wanted) page.querySelectorAll(`.family [data-uuid="${CSS.escape(wanted)}"]`).forEach((shape) => shape.classList.add("lit"));
}

poll("/api/lineage", (data) => { shown = data; render(); });
let timer = null;
addEventListener("resize", () => {
  clearTimeout(timer);
  timer = setTimeout(() => shown && page.clientWidth !== width && render(), 150);
});
