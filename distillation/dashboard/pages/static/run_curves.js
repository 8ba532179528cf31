// The curves of one run: a chart for each quantity, its splits as lines.

import { poll } from "./api.js";
import { Chart, curveTools, showCurves } from "./chart.js";
import { el, fill } from "./dom.js";
import { isQuiet, parts, ranked } from "./format.js";

const COLOURS = { test: 0, valid: 2, train: 1, "": 0 };

export function runCurves(uuid) {
  const charts = new Map();
  const grid = el("div", { class: "charts" });
  const said = el("p", { class: "quiet" });
  const chosen = new Set(); // statistics of single parameters, which are many
  const search = el("input", { type: "search", placeholder: "Find a parameter", "aria-label": "Find a statistic" });
  const options = el("div", { class: "options" });
  const more = el("details", { class: "more", hidden: true }, el("summary", {}), search, options);
  const tools = curveTools(() => draw());
  const node = el("div", {}, tools.node, grid, said, more);
  let curves = {};
  let names = "";
  let asking = null;

  function draw() {
    const groups = new Map();
    for (const name of ranked(Object.keys(curves))) {
      const [head, split] = parts(name);
      if (!groups.has(head)) groups.set(head, []);
      groups.get(head).push({ name, title: split || head, colour: COLOURS[split], ...curves[name] });
    }
    for (const [head, chart] of charts) {
      if (groups.has(head)) continue;
      chart.remove();
      charts.delete(head);
    }
    for (const [head, lines] of groups) {
      if (!charts.has(head)) {
        charts.set(head, new Chart(head));
        grid.append(charts.get(head).figure);
      }
      showCurves(charts.get(head), lines, { ...tools.state, named: lines.length > 1 || lines[0].title !== head });
    }
    fill(said, groups.size ? null : "No metrics yet. Curves appear when the first epoch has ended, at most five seconds later.");
    tools.node.hidden = !groups.size;
  }

  function ask() {
    asking?.stop();
    const quiet = [...chosen].map((name) => `name=${encodeURIComponent(name)}`);
    const plain = JSON.parse(names).filter((name) => !isQuiet(name)).map((name) => `name=${encodeURIComponent(name)}`);
    const wanted = [...plain, ...quiet].join("&");
    asking = poll(
      // Without statistics the server knows which curves there are, also those that come
      `/api/runs/${uuid}/curves?points=1000${quiet.length ? `&${wanted}` : ""}`,
      (data) => { curves = data.curves; draw(); },
      { onGone: () => {} }, // the page itself says it
    );
  }

  function offer(run) {
    const key = JSON.stringify(run.metric_names);
    if (key === names) return;
    names = key;
    const quiet = run.metric_names.filter(isQuiet);
    more.hidden = !quiet.length;
    fill(more.firstChild, `${quiet.length} statistics of parameters and gradients`);
    const toggle = (name, on) => { on ? chosen.add(name) : chosen.delete(name); ask(); };
    fill(options, quiet.map((name) => el("label", {}, el("input", { type: "checkbox", value: name, checked: chosen.has(name), onchange: (e) => toggle(name, e.target.checked) }), el("span", {}, name))));
    ask();
  }

  search.addEventListener("input", () => {
    for (const label of options.children) label.hidden = !label.textContent.includes(search.value.trim());
  });
  return { node, offer, stop: () => asking?.stop() };
}
