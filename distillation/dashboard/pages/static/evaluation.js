// Charts of what a run's evaluation.json holds: accuracy by class, reliability, confusion.

import { colour, legend, lineColour } from "./chart.js";
import { count, nameOf, number, percent, short, signed } from "./format.js";

const MANY = 20; // classes, from which on names and numbers would not be legible

const total = (row) => row.reduce((a, b) => a + b, 0);
const share = (part, whole) => (whole ? part / whole : null);
const perClass = ({ confusion }) => confusion.map((row, i) => share(row[i], total(row)));

/** The accuracy of each class, all runs side by side. */
export function showClasses(chart, classes, runs) {
  const accuracies = runs.map((run) => perClass(run.evaluation));
  const images = runs[0].evaluation.confusion.map(total);
  chart.legend.replaceChildren(...legend(runs));
  chart.show({
    label: runs.map((run) => `${run.title}: ${percent(run.evaluation.accuracy)} in all`).join("; "),
    data: {
      columns: [{ title: "class" }, { title: "images", number: true }, ...runs.map((run) => ({ title: run.title, number: true }))],
      rows: classes.map((name, i) => [name, count(images[i]), ...accuracies.map((a) => percent(a[i]))]),
    },
    traces: () =>
      runs.map((run, i) => ({
        type: "bar",
        name: run.title,
        x: classes.map((_, c) => c),
        y: accuracies[i],
        customdata: classes,
        marker: { color: lineColour(run.colour), line: { width: 0 } },
        hovertemplate: `%{customdata}, ${run.role}: %{y:.2%}<extra></extra>`,
      })),
    layout: () => ({
      barmode: "group",
      bargap: 0.25,
      // Bars begin at zero: their lengths can be compared
      yaxis: { tickformat: ".0%", range: [0, 1.02] },
      xaxis: { ...ticks(classes), showgrid: false, title: { text: "class" } },
    }),
  });
}

const ticks = (classes) =>
  classes.length > MANY ? { nticks: 10, range: [-0.7, classes.length - 0.3] } : { tickvals: classes.map((_, i) => i), ticktext: classes.map(plain) };

/** Plotly reads some HTML in labels; a class's name is text. */
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** Accuracy over confidence, in bins of equal width; a fuller bar holds more images. */
export function showReliability(chart, run) {
  const { bins, ece } = run.evaluation;
  const known = bins.map((bin, i) => ({ ...bin, from: i / bins.length, to: (i + 1) / bins.length }));
  const all = total(bins.map((bin) => bin.count || 0));
  const filled = known.filter((bin) => bin.count);
  const range = (bin) => `${percent(bin.from, 0)} to ${percent(bin.to, 0)}`;
  chart.show({
    label: `Calibration error ${percent(ece)}; ` + filled.map((bin) => `${range(bin)} sure: ${percent(bin.accuracy, 0)} right of ${bin.count}`).join("; "),
    said: `Calibration error ${percent(ece)} over ${count(all)} images.`,
    data: {
      columns: ["confidence", "images", "mean confidence", "accuracy"].map((title, i) => ({ title, number: i > 0 })),
      rows: filled.map((bin) => [range(bin), count(bin.count), percent(bin.confidence), percent(bin.accuracy)]),
    },
    traces: () => [
      {
        type: "bar",
        x: filled.map((bin) => (bin.from + bin.to) / 2),
        y: filled.map((bin) => bin.accuracy),
        width: 0.9 / bins.length,
        customdata: filled.map((bin) => [bin.count, bin.confidence]),
        marker: {
          color: lineColour(run.colour),
          opacity: filled.map((bin) => 0.35 + 0.65 * Math.sqrt(bin.count / all)),
        },
        hovertemplate: "%{customdata[0]} images, confidence %{customdata[1]:.1%}, accuracy %{y:.1%}<extra></extra>",
      },
      { x: [0, 1], y: [0, 1], mode: "lines", line: { color: colour("quiet"), width: 1.2, dash: "dash" }, hoverinfo: "skip" },
    ],
    layout: () => ({
      bargap: 0,
      xaxis: { range: [0, 1], tickformat: ".0%", title: { text: "confidence" }, nticks: 6 },
      yaxis: { range: [0, 1.02], tickformat: ".0%", title: { text: "accuracy" }, nticks: 6 },
    }),
  });
}

/**
 * The student's confusion less the other's: counts on the same images; where the numbers of images
 * differ, points of a hundred of each class.
 */
export function showDifference(chart, classes, student, other) {
  const [ours, theirs] = [student.evaluation.confusion, other.evaluation.confusion];
  const same = ours.every((row, i) => total(row) === total(theirs[i]));
  const of = (rows, i, j) => (same ? rows[i][j] : 100 * (share(rows[i][j], total(rows[i])) ?? 0));
  const unit = same ? "images" : "points";
  const write = (value) => `${value > 0 ? "+" : ""}${signed(same ? String(value) : value.toFixed(1))}`;
  const z = ours.map((row, i) => row.map((_, j) => of(ours, i, j) - of(theirs, i, j)));
  const most = Math.max(1, ...z.flat().map(Math.abs));
  const cells = z
    .flatMap((row, i) => row.map((value, j) => ({ i, j, value })))
    .filter((cell) => cell.value)
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const name = ({ i, j }) => (i === j ? `${classes[i]} recognized` : `${classes[i]} taken for ${classes[j]}`);
  const amount = (rows, { i, j }) => (same ? count(rows[i][j]) : number(of(rows, i, j)));
  chart.show({
    label: cells.length ? `Largest differences: ${cells.slice(0, 5).map((c) => `${name(c)} ${write(c.value)}`).join("; ")}` : "No difference: both give every class the same answers.",
    said: cells.length
      ? `Most: ${cells.slice(0, 3).map((c) => `${name(c)} ${write(c.value)}`).join(", ")}${same ? "" : " points"}.`
      : "No difference: both give every class the same answers.",
    data: {
      columns: [{ title: "true class, answer" }, ...[`${nameOf(student)} ${short(student.uuid)}`, `${other.role} ${short(other.uuid)}`, "difference"].map((title) => ({ title, number: true }))],
      rows: cells.slice(0, 25).map((c) => [name(c), amount(ours, c), amount(theirs, c), write(c.value)]),
    },
    traces: () => [
      {
        type: "heatmap",
        z,
        zmin: -most,
        zmax: most,
        xgap: classes.length > MANY ? 0 : 1,
        ygap: classes.length > MANY ? 0 : 1,
        customdata: z.map((row, i) => row.map((value, j) => `${plain(name({ i, j }))}: ${write(value)} ${unit}`)),
        text: z.map((row) => row.map((value) => (value ? write(value) : ""))),
        texttemplate: classes.length > MANY ? "" : "%{text}",
        colorscale: [[0, colour("less")], [0.5, colour("wash")], [1, colour("more")]],
        colorbar: { thickness: 8, outlinewidth: 0, title: { text: unit } },
        hovertemplate: "%{customdata}<extra></extra>",
      },
    ],
    layout: () => ({
      xaxis: { ...ticks(classes), showgrid: false, zeroline: false, title: { text: "answer" } },
      yaxis: { ...ticks(classes), showgrid: false, zeroline: false, title: { text: "true class" }, ...(classes.length > MANY ? { range: [classes.length - 0.5, -0.5] } : { autorange: "reversed" }) },
    }),
  });
}
