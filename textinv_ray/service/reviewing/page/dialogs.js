// Dialogs: keys, note, zoom.
import { get } from "./dom.js";
import { pictures } from "./concept.js";

let zoomed = 0;

/** Closes a dialog. Its field would keep the focus, and swallow keys, until the page is drawn next. */
function close(dialog) {
  dialog.close();
  leave(dialog);
}

function leave(dialog) {
  if (dialog.contains(document.activeElement)) document.activeElement.blur();
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => leave(dialog)); // also by Escape
  dialog.querySelector(".close").addEventListener("click", () => close(dialog));
}

export const isOpen = () => Boolean(document.querySelector("dialog[open]"));

export function help() {
  get("help").showModal();
}

/** Asks for a note; `keep` is called with the text. */
export function note(id, text, keep) {
  get("note-title").textContent = `Note on ${id}`;
  get("note-text").value = text;
  const save = () => {
    close(get("note-dialog"));
    keep(get("note-text").value.trim());
  };
  get("note-save").onclick = save;
  get("note-text").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  };
  get("note-dialog").showModal();
  get("note-text").focus();
}

export function zoom(index) {
  const all = pictures();
  if (!all.length) return;
  zoomed = (index + all.length) % all.length;
  const { src, text } = all[zoomed];
  get("zoom-picture").src = src;
  get("zoom-picture").alt = text;
  get("zoom-text").textContent = `${text} (${zoomed + 1} of ${all.length})`;
  if (!get("zoom-dialog").open) get("zoom-dialog").showModal();
}

get("zoom-dialog").addEventListener("keydown", (event) => {
  if (["ArrowRight", "ArrowDown", "n"].includes(event.key)) zoom(zoomed + 1);
  else if (["ArrowLeft", "ArrowUp", "p"].includes(event.key)) zoom(zoomed - 1);
  else if (event.key === "z") close(get("zoom-dialog"));
  else return;
  event.preventDefault();
});
get("zoom-picture").addEventListener("click", () => zoom(zoomed + 1));
