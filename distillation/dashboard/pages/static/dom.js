// Elements from data. Text only ever becomes a text node: nothing of a run is read as HTML.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A name that may go on in the next line after a point, a slash or an underscore. */
export const breakable = (text) => text.split(/(?<=[._/])/).flatMap((part) => [el("wbr"), part]).slice(1);

export const byId = (id) => document.getElementById(id);

/** Replace what `node` holds. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Remembers small choices of the reader; without storage they hold for this page only. */
export const memory = {
  get(key, otherwise) {
    try {
      const found = JSON.parse(localStorage.getItem(`dashboard.${key}`));
      return found === null ? otherwise : found;
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try { localStorage.setItem(`dashboard.${key}`, JSON.stringify(value)); } catch { /* full or off */ }
  },
};

/**
 * A table: `columns` are {title, number?, head?}, `rows` arrays of strings or nodes. The first
 * cell of a row is its header. On a phone each row is a card whose cells say their column.
 */
export function table(caption, columns, rows, { cards = true, className = "" } = {}) {
  const cell = (content, i) =>
    el(
      i ? "td" : "th",
      {
        role: i ? "cell" : "rowheader",
        scope: i ? null : "row",
        class: columns[i].number ? "number" : null,
        "data-column": columns[i].title,
      },
      content ?? "–",
    );
  const head = columns.map((c) =>
    el("th", { scope: "col", role: "columnheader", class: c.number ? "number" : null }, c.head ?? c.title),
  );
  // The roles are said: laid out as cards, a table would lose them
  const made = el(
    "table",
    { role: "table", class: `${cards ? "cards" : ""} ${className}` },
    caption && el("caption", {}, caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head)),
    el("tbody", { role: "rowgroup" }, rows.map((row) => el("tr", { role: "row" }, row.map(cell)))),
  );
  return el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": caption || "Table" }, made);
}

/** What a page shows when there is nothing: what it means, and what to do. */
export function empty(title, ...more) {
  return el("div", { class: "empty" }, el("h2", {}, title), ...more);
}

/** A line of a terminal. */
export const command = (text) => el("pre", { class: "command" }, el("code", {}, text));
