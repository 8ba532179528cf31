// How values are written, and which metrics come first.

const QUIET = ["param.", "grad."];
const MAXIMISED = [
  "accuracy", "agreement", "top1", "top5", "f1", "f1score", "fbetascore", "r2score", "dicescore",
  "iou", "union", "jaccardindex", "recall", "precision", "specificity", "auroc", "auc", "kappa",
  "corrcoef", "psnr", "ssim",
];
const MINUS = "−";

export const short = (uuid) => uuid.slice(0, 8);
export const isQuiet = (name) => QUIET.some((head) => name.startsWith(head));

/** Whether more of a metric is better; everything else is a loss. As in `distillation.runs`. */
export function isMaximised(name) {
  const parts = name.toLowerCase().split(/[./_@]/);
  const ends = (part) => MAXIMISED.some((ending) => part.endsWith(ending));
  return parts.some(ends) && !parts.includes("loss");
}

/** `accuracy.test` → ["accuracy", "test"]; a name without a split → [name, ""]. */
export function parts(name) {
  const at = name.lastIndexOf(".");
  const split = at > 0 ? name.slice(at + 1) : "";
  return ["train", "test", "valid"].includes(split) ? [name.slice(0, at), split] : [name, ""];
}

/** Metric names in the order in which one reads them: accuracy, loss, others; test before train. */
export function ranked(names) {
  const heads = ["accuracy", "loss", "agreement", "kl", "ece"];
  const splits = ["test", "valid", "train"];
  const rank = (name) => {
    const [head, split] = parts(name);
    const h = heads.indexOf(head.toLowerCase());
    const s = splits.indexOf(split);
    return [s < 0 ? 3 : s, h < 0 ? heads.length : h];
  };
  return [...names].sort((a, b) => {
    const [[sa, ha], [sb, hb]] = [rank(a), rank(b)];
    return sa - sb || ha - hb || a.localeCompare(b);
  });
}

/** A metric: four digits after the point, or four significant ones for the very small and large. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0 || (Number.isInteger(value) && Math.abs(value) < 1e6)) return signed(String(value));
  const size = Math.abs(value);
  return signed(size >= 1e-3 && size < 1e5 ? value.toFixed(4) : value.toExponential(3));
}

export const signed = (text) => text.replace(/-/g, MINUS);
export const percent = (value, digits = 2) =>
  value === null || value === undefined ? "–" : `${signed((100 * value).toFixed(digits))} %`;

/** A metric as one reads it: shares in percent. What exceeds one is no share, whatever its name. */
export const metric = (name, value) => (isShare(name, value) ? percent(value) : number(value));
export const isShare = (name, value) => /^(accuracy|agreement|ece)(?![a-z])/i.test(name) && Math.abs(value) <= 1;
export const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

export function meanStd(name, { mean, std }) {
  if (std === null) return metric(name, mean);
  return isShare(name, mean) ? `${(100 * mean).toFixed(2)} ± ${percent(std)}` : `${number(mean)} ± ${number(std)}`;
}

/** A configuration value, as one would set it. */
export function scalar(value) {
  if (value === undefined) return "–";
  if (value === null) return "none";
  return String(value);
}

export function bytes(size) {
  const units = ["B", "kB", "MB", "GB"];
  let i = 0;
  for (; size >= 1000 && i < units.length - 1; i++) size /= 1000;
  return `${i ? size.toFixed(1) : size} ${units[i]}`;
}

/** A moment in the reader's time; the year only where it is another one. */
export function moment(iso) {
  const date = new Date(iso ?? NaN);
  if (Number.isNaN(date.getTime())) return "–";
  const year = date.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
  const options = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false };
  return date.toLocaleString("en-GB", { ...options, ...year });
}

export function duration(from, to) {
  const seconds = Math.round((new Date(to) - new Date(from)) / 1000);
  if (!(seconds >= 0)) return "–";
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** The epoch a run is in, counted from one: "12 / 40". */
export function epoch({ epoch: at, epochs }) {
  if (at === null || at === undefined) return epochs ? `0 / ${epochs}` : "–";
  const now = Math.floor(at) + 1;
  return epochs ? `${Math.min(now, epochs)} / ${epochs}` : String(now);
}

const LONGEST = 60; // characters of a name in lists, legends and menus
export const cut = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST).trimEnd()}…` : text);

/** `record[key]` where a run has it: `constructor` is a name like any other. */
export const own = (record, key) => (record && Object.hasOwn(record, key) ? record[key] : undefined);

export const fullNameOf = (run) => run.name || run.experiment || "run";
export const nameOf = (run) => cut(fullNameOf(run));
