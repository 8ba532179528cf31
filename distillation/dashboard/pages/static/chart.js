// Plotly's charts in the page's colours, each with words and a table for those who see no lines.

import { el, fill, memory, table } from "./dom.js";
import { count, isMaximised, isShare, metric } from "./format.js";
import { swatch } from "./parts.js";

const DASHES = ["solid", "dash", "dot", "dashdot"];
let script = null;

/** Plotly's script, which is large: it is read once. */
function plotly() {
  script ??= new Promise((done, failed) => {
    const tag = el("script", { src: "/static/plotly.min.js" });
    tag.addEventListener("load", () => done(window.Plotly));
    tag.addEventListener("error", () => failed(new Error("the script of Plotly cannot be read")));
    document.head.append(tag);
  });
  return script;
}

plotly().catch(() => {}); // at once, beside the page's own questions; the chart says what failed

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const lineColour = (i) => colour(`line-${i % 8}`);

const drawn = new Set();
addEventListener("themechange", () => drawn.forEach((chart) => chart.draw()));

// A page may have many charts: those in sight are drawn, the others when they come in sight
const sight = new IntersectionObserver(
  (entries) => entries.forEach(({ target, isIntersecting }) => target.chart.inSight(isIntersecting)),
  { rootMargin: "200px" },
);

function base() {
  const axis = {
    gridcolor: colour("rule"),
    linecolor: colour("rule"),
    zerolinecolor: colour("rule"),
    automargin: true,
    ticks: "",
    title: { standoff: 8 },
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: colour("quiet") },
    margin: { l: 44, r: 12, t: 8, b: 36 },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("rule"), font: { color: colour("ink") } },
    dragmode: "zoom",
    xaxis: axis,
    yaxis: { ...axis },
  };
}

const merged = (into, from) => {
  for (const [key, value] of Object.entries(from)) {
    const plain = value && typeof value === "object" && !Array.isArray(value);
    into[key] = plain ? merged({ ...(into[key] || {}) }, value) : value;
  }
  return into;
};

/**
 * A figure with a title, a drawing, what it says in words, and the same as a table. `show` takes
 * {traces, layout}: functions, asked again when the colours change.
 */
export class Chart {
  constructor(title, { size = "" } = {}) {
    // What Plotly draws has no words of its own: the picture around it has
    this.drawing = el("div", { class: `drawing ${size}`, "aria-hidden": "true" });
    this.picture = el("div", { role: "img" }, this.drawing);
    this.drawing.chart = this;
    this.legend = el("ul", { class: "legend" });
    this.said = el("p", { class: "said" });
    this.table = el("div");
    this.figure = el(
      "figure",
      {},
      el("figcaption", {}, el("h3", {}, title), this.legend),
      this.picture,
      this.said,
      el("details", {}, el("summary", {}, "As a table", el("span", { class: "unseen" }, `: ${title}`)), this.table),
    );
    this.title = title;
    this.visible = false;
    this.wanted = null;
    drawn.add(this);
    sight.observe(this.drawing);
  }

  show({ traces, layout = () => ({}), label, said = "", data }) {
    this.wanted = { traces, layout };
    this.picture.setAttribute("aria-label", `${this.title}. ${label}`);
    if (this.said.textContent !== said) fill(this.said, said);
    fill(this.table, table(null, data.columns, data.rows, { cards: false }));
    this.draw();
  }

  inSight(visible) {
    this.visible = visible;
    if (visible && this.stale) this.draw();
  }

  async draw() {
    this.stale = !this.visible;
    if (this.stale || !this.wanted) return;
    try {
      const Plotly = await plotly();
      const layout = merged(base(), this.wanted.layout());
      const options = { displayModeBar: false, responsive: true, showTips: false };
      // What the reader zoomed into stays
      await Plotly.react(this.drawing, this.wanted.traces(), { ...layout, uirevision: layout.yaxis.type }, options);
      document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true"); // its ruler
      this.drawing.dataset.drawn = String(Number(this.drawing.dataset.drawn || 0) + 1);
    } catch (error) {
      fill(this.said, `This chart could not be drawn: ${error.message}`);
    }
  }

  remove() {
    drawn.delete(this);
    sight.unobserve(this.drawing);
    window.Plotly?.purge(this.drawing);
    this.figure.remove();
  }
}

/** Exponential moving average, free of the zero it begins with; what is no number is passed over. */
export function smooth(values, weight) {
  let sum = 0;
  let norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

export const legend = (lines) => lines.map((line) => el("li", {}, swatch(line.colour), line.title));

// Beyond it Plotly's axes overflow: their ends are further out than a number can say
const HUGE = 1e300;
const drawable = (values) => values.map((v) => (v !== null && Math.abs(v) > HUGE ? null : v));

const numbers = (values) => values.filter((value) => value !== null);
const extent = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);

function summary(name, { steps, values }) {
  const known = numbers(values);
  if (!known.length) return [name, "–", "–", "–", count(values.length)];
  const [least, most] = extent(known);
  const best = isMaximised(name) ? most : least;
  return [
    name,
    metric(name, known.at(-1)),
    metric(name, best),
    count(steps[values.indexOf(best)]),
    count(values.length - known.length),
  ];
}

/**
 * Curves over the number of images seen. `lines` are {name, title, colour, steps, values}: `name`
 * is the metric's, `title` what the legend says.
 */
export function showCurves(chart, lines, { smoothing = 0, log = false, named = true } = {}) {
  const key = JSON.stringify([smoothing, log, lines.map((l) => [l.title, l.colour, l.steps.length, l.steps.at(-1), l.values.at(-1)])]);
  if (chart.key === key) return;
  chart.key = key;
  if (named) fill(chart.legend, legend(lines));
  const missing = lines.reduce((n, l) => n + l.values.length - numbers(l.values).length, 0);
  const beyond = lines.reduce((n, l) => n + numbers(l.values).filter((v) => Math.abs(v) > HUGE).length, 0);
  const below = log ? lines.reduce((n, l) => n + numbers(l.values).filter((v) => v <= 0).length, 0) : 0;
  const said = [
    missing && `${missing} ${missing === 1 ? "value was" : "values were"} not a number: gaps in the curve.`,
    beyond && `${beyond} ${beyond === 1 ? "value is" : "values are"} too large to be drawn: gaps in the curve.`,
    below && `${below} ${below === 1 ? "value is" : "values are"} not above zero, where a log scale has no place.`,
  ].filter(Boolean);
  const shares = lines.every((l) => extent(numbers(l.values)).every((v) => isShare(l.name, v)));
  const rows = lines.map((l) => [l.title, ...summary(l.name, l).slice(1)]);
  chart.show({
    label: rows.map(([title, last, best, at]) => `${title}: last ${last}, best ${best} at ${at} images`).join("; "),
    said: said.join(" "),
    data: {
      columns: ["curve", "last", "best", "at image", "no number"].map((title, i) => ({ title, number: i > 0 })),
      rows,
    },
    traces: () =>
      lines.flatMap((l) => {
        const line = { color: lineColour(l.colour), width: 1.8, dash: DASHES[Math.floor(l.colour / 8) % 4] };
        const y = drawable(l.values);
        // A value between two that are no numbers has no line: it gets a point
        const lone = y.map((v, i) => v !== null && (y[i - 1] ?? y[i + 1] ?? null) === null);
        const marker = { color: line.color, size: lone.map((is) => (is ? 5 : 0)), opacity: 1 };
        const hovertemplate = `%{y:${shares ? ".2%" : ".5~g"}} at %{x:,}<extra></extra>`;
        const trace = { x: l.steps, y, mode: lone.includes(true) ? "lines+markers" : "lines", line, marker, connectgaps: false, hovertemplate };
        if (!smoothing) return [trace];
        const faint = { ...trace, opacity: 0.28, line: { ...line, width: 1 }, hoverinfo: "skip", hovertemplate: null };
        return [faint, { ...trace, y: smooth(y, smoothing) }];
      }),
    layout: () => ({
      xaxis: { title: { text: "images seen" }, rangemode: "tozero", nticks: 6 },
      yaxis: { type: log ? "log" : "linear", nticks: 6, tickformat: shares ? ".2~%" : "" },
    }),
  });
}

/** The switches above curves, remembered; `changed` is called with {smoothing, log}. */
export function curveTools(changed) {
  const state = { smoothing: 0, log: false, ...memory.get("curves", {}) };
  const said = el("output", {}, String(state.smoothing));
  const slider = el("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: state.smoothing, id: "smoothing" });
  const box = el("input", { type: "checkbox", checked: state.log, id: "log-scale" });
  const set = () => {
    state.smoothing = Number(slider.value);
    state.log = box.checked;
    fill(said, slider.value);
    memory.set("curves", state);
    changed(state);
  };
  slider.addEventListener("input", set);
  box.addEventListener("change", set);
  const node = el(
    "div",
    { class: "tools" },
    el("label", { class: "check" }, "smoothing", slider, said),
    el("label", { class: "check" }, box, el("span", {}, "log scale")),
  );
  return { node, state };
}
