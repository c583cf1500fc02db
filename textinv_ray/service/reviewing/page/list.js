// The list of concepts and the contact sheet: only what can be seen is in the page, so thousands cost nothing.
import { get, make, pictureUrl, signed } from "./dom.js";
import { state, verdict } from "./state.js";

const BESIDE = { width: 0, height: 68 };
const SHEET = { width: 272, height: 194 };
const OVERSCAN = 4; // rows
const MARKS = { approved: "✓", rejected: "✕", undecided: "", failed: "!" };
const list = get("list");
const rows = get("rows");
const shown = new Map(); // id -> element
let onPick = () => {};

export const whenPicked = (callback) => (onPick = callback);
export const isSheet = () => document.body.classList.contains("sheet");

function layout() {
  if (!isSheet()) return { ...BESIDE, width: list.clientWidth, columns: 1 };
  const columns = Math.max(1, Math.floor(list.clientWidth / SHEET.width));
  return { ...SHEET, width: list.clientWidth / columns, columns };
}

/** Draws what can be seen. ids: concepts that changed; without: all. */
export function draw(ids) {
  const { width, height, columns } = layout();
  const total = Math.ceil(state.order.length / columns);
  rows.style.height = `${total * height}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / height) - OVERSCAN);
  const last = Math.min(total, Math.ceil((list.scrollTop + list.clientHeight) / height) + OVERSCAN);
  const wanted = new Set(state.order.slice(first * columns, last * columns));
  for (const [id, element] of shown) {
    if (!wanted.has(id) || !ids || ids.includes(id)) {
      element.remove();
      shown.delete(id);
    }
  }
  for (const id of wanted) {
    const index = state.place.get(id);
    let element = shown.get(id);
    if (!element) {
      element = entry(state.concepts.get(id), index);
      shown.set(id, element);
      rows.append(element);
    }
    const [row, column] = [Math.floor(index / columns), index % columns];
    Object.assign(element.style, {
      transform: `translate(${column * width}px, ${row * height}px)`,
      width: `${width}px`,
      height: `${height}px`,
    });
    element.classList.toggle("current", id === state.current);
    element.setAttribute("aria-selected", state.selected.has(id) || id === state.current);
    element.querySelector("input").checked = state.selected.has(id);
  }
  if (state.current && shown.has(state.current)) list.setAttribute("aria-activedescendant", `entry-${state.place.get(state.current)}`);
  else list.removeAttribute("aria-activedescendant");
}

/** Scrolls so that the current concept can be seen. */
export function reveal() {
  const { height, columns } = layout();
  const top = Math.floor((state.place.get(state.current) ?? 0) / columns) * height;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
  draw();
}

export const columns = () => layout().columns;

function entry(concept, index) {
  const of = verdict(concept);
  const look = concept.looks[concept.looks.length - 1];
  const pictures =
    concept.status === "failed"
      ? []
      : [pictureUrl(concept, "training", 0, "small"), concept.looks.length ? pictureUrl(concept, look, 0, "small") : null];
  const warnings = concept.warnings.map((warning) => warning.text).join("; ");
  const note = concept.decision?.note ? " · note" : "";
  const scores = concept.status === "failed" ? "failed" : `gain ${signed(concept.gain)}${note}`;
  return make(
    "div",
    {
      className: `entry ${of}`,
      id: `entry-${index}`,
      role: "option",
      "aria-setsize": state.order.length,
      "aria-posinset": index + 1,
      "aria-label": [concept.id, of, scores, warnings].filter(Boolean).join(", "),
      onclick: (event) => onPick(concept.id, event),
      ondblclick: () => onPick(concept.id, { isOpen: true }),
    },
    make("input", { type: "checkbox", tabIndex: -1, "aria-label": `Select ${concept.id}` }),
    make(
      "span",
      { className: "thumbs" },
      pictures.filter(Boolean).map((src) => make("img", { src, alt: "", loading: "lazy", decoding: "async" })),
    ),
    make(
      "span",
      { className: "words" },
      make("b", {}, concept.id),
      make("small", { className: concept.gain < 0 ? "worse" : "" }, scores),
    ),
    make("span", { className: "mark", title: warnings, "aria-hidden": "true" }, warnings ? "⚠ " : "", MARKS[of]),
  );
}

list.addEventListener("scroll", () => draw(), { passive: true });
new ResizeObserver(() => draw()).observe(list);
