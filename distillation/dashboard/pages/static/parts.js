// Pieces that several pages show.

import { setNote } from "./api.js";
import { el, fill } from "./dom.js";
import { nameOf, short } from "./format.js";

/** A run's state in a word, with a dot that blinks while it is running. */
export const status = (state) => el("span", { class: `status ${state}` }, state);

export const runLink = (run, ...more) =>
  el("a", { href: `/runs/${run.uuid}` }, nameOf(run), " ", el("code", {}, short(run.uuid)), ...more);

/** Where a line's colour is said; the eye gets the colour, everyone the name. */
export const swatch = (i) => el("span", { class: `swatch line-${i % 8}`, "aria-hidden": "true" });

/** The address of a page about several runs. */
export const about = (page, uuids) => `/${page}?runs=${uuids.join(",")}`;

/** The runs that the address names. */
export const asked = () =>
  (new URLSearchParams(location.search).get("runs") || "").split(",").filter(Boolean);

/** A note's text area with its button; `saved` gets the run as it is then. */
export function noteForm(run, saved, extra = []) {
  const text = el("textarea", { rows: 4, maxlength: 10000, "aria-label": `Note on ${nameOf(run)} ${short(run.uuid)}` });
  text.value = run.note;
  const said = el("span", { class: "quiet", role: "status" });
  const save = async (event) => {
    event.preventDefault();
    try {
      const entry = await setNote(run.uuid, text.value);
      fill(said, "saved");
      saved(entry);
    } catch (error) {
      fill(said, `not saved: ${error.message}`);
    }
  };
  text.addEventListener("input", () => fill(said, text.value === run.note ? "" : "not saved yet"));
  text.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && save(event));
  const form = el("form", { class: "note", onsubmit: save }, text, el("div", { class: "row" }, el("button", { type: "submit", class: "main" }, "Save note"), extra, said));
  return { form, text };
}

/** Edit a run's note over the list. */
export function noteDialog(run, saved) {
  const close = el("button", { type: "button" }, "Close");
  const { form, text } = noteForm(run, (entry) => { saved(entry); dialog.close(); }, [close]);
  const dialog = el("dialog", { "aria-label": "Note" }, el("h2", {}, "Note on ", nameOf(run), " ", el("code", {}, short(run.uuid))), form);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  text.focus();
}
