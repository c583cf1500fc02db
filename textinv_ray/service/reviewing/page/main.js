// The review page: keys and buttons. What is shown is in state.js, what is stored goes through saving.js.
import * as concept from "./concept.js";
import * as dialogs from "./dialogs.js";
import { get, make, say, signed, tell } from "./dom.js";
import * as list from "./list.js";
import * as saving from "./saving.js";
import { arrange, counts, current, neighbour, nextUndecided, selectTo, state, toggle, verdict } from "./state.js";

const FILTERS = ["search", "verdict", "warning", "tag", "sort"];
const POLL_MS = 4000;
const MOST_TAGS = 300;

function filters() {
  return Object.fromEntries(FILTERS.map((name) => [name, get(name).value]));
}

function refresh(event) {
  if (event?.target.id === "sort") state.current = null; // from the first on
  arrange(filters());
  get("list").scrollTop = 0;
  drawAll();
}

function drawAll() {
  list.draw();
  list.reveal();
  concept.draw();
  drawCounts();
  drawSelection();
}

function drawCounts() {
  const { approved, rejected, undecided, failed } = counts();
  const total = approved + rejected + undecided;
  get("progress").max = total || 1;
  get("progress").value = approved + rejected;
  get("counts").textContent =
    `${approved + rejected} of ${total} decided · ${approved} approved · ${rejected} rejected` + (failed ? ` · ${failed} failed` : "");
}

function drawSelection() {
  const count = state.selected.size;
  get("bulk").hidden = !count;
  get("bulk-count").textContent = `${count} selected`;
  list.draw();
}

function go(id, isSaid = true) {
  if (id === null || id === state.current) return;
  state.current = id;
  state.look = null;
  list.reveal();
  concept.draw();
  if (isSaid) say(spoken());
}

function spoken() {
  const shown = current();
  if (!shown) return "No concept passes these filters.";
  const warnings = shown.warnings.map((warning) => warning.text);
  return [shown.id, verdict(shown), shown.status === "failed" ? shown.error : `gain ${signed(shown.gain)}`, ...warnings].join(", ");
}

/** Approves, rejects, or makes undecided: the selection if there is one, else the current concept. */
function decide(wanted) {
  const ids = state.selected.size ? [...state.selected] : [state.current];
  const isBulk = state.selected.size > 0;
  const changes = ids.map((id) => ({ id, verdict: wanted, note: state.concepts.get(id)?.decision?.note }));
  if (!state.concepts.get(ids[0]) || !saving.decide(changes)) return;
  if (isBulk) {
    tell(`${ids.length} ${wanted}. U takes it back.`);
    say(`${ids.length} concepts ${wanted}`);
    clear();
    return;
  }
  const next = nextUndecided();
  const done = `${ids[0]} ${wanted}.`;
  go(next, false);
  say(next === null ? `${done} None of the concepts that are shown is undecided.` : `${done} ${spoken()}`);
  if (next === null) tell("None of the concepts that are shown is undecided.");
}

function undo() {
  const ids = saving.undo();
  if (!ids.length) return tell("There is nothing to take back.");
  if (ids.length === 1 && state.place.has(ids[0])) go(ids[0], false);
  say(ids.length === 1 ? `Taken back: ${ids[0]} is ${verdict(state.concepts.get(ids[0]))}` : `Taken back: ${ids.length} decisions`);
  tell(ids.length === 1 ? `Taken back: ${ids[0]}` : `Taken back: ${ids.length} decisions`);
}

function note() {
  const shown = current();
  if (!shown || shown.status === "failed") return;
  dialogs.note(shown.id, shown.decision?.note ?? "", (text) => saving.decide([{ id: shown.id, verdict: verdict(shown), note: text }]));
}

function clear() {
  state.selected.clear();
  state.anchor = null;
  drawSelection();
}

function compare() {
  state.isComparing = !state.isComparing;
  get("compare").setAttribute("aria-pressed", state.isComparing);
  concept.draw();
  if (state.isComparing && !state.concepts.has(current()?.nearest)) tell("The nearest concept isn't known: the job writes it at its end.");
}

function sheet(isOn = !list.isSheet()) {
  document.body.classList.toggle("sheet", isOn);
  get("sheet-toggle").setAttribute("aria-pressed", isOn);
  list.draw();
  list.reveal();
}

function toggleList(isOn) {
  const is = document.body.classList.toggle("with-list", isOn);
  get("list-toggle").setAttribute("aria-expanded", is);
  list.draw();
  list.reveal();
}

function look(by) {
  const shown = current();
  const steps = shown?.looks.filter((step) => step > 0) ?? [];
  if (steps.length < 2) return;
  const index = Math.min(Math.max(steps.indexOf(concept.lookOf(shown)) + by, 0), steps.length - 1);
  state.look = steps[index];
  concept.draw();
  say(`Samples of step ${state.look}`);
}

function move(by, isSelecting) {
  const id = neighbour(by);
  if (isSelecting && id !== null) {
    selectTo(id);
    go(id);
    drawSelection();
  } else go(id);
}

const KEYS = {
  a: () => decide("approved"),
  r: () => decide("rejected"),
  u: undo,
  n: () => move(1),
  j: () => move(1),
  p: () => move(-1),
  k: () => move(-1),
  e: note,
  c: compare,
  z: () => dialogs.zoom(0),
  s: () => sheet(),
  m: () => {
    if (state.current) toggle(state.current);
    drawSelection();
  },
  "[": () => look(-1),
  "]": () => look(1),
  "/": () => {
    if (getComputedStyle(get("list-pane")).display === "none") toggleList(true);
    get("search").focus();
  },
  "?": dialogs.help,
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
};

function onKey(event) {
  const isTyping = event.target.closest("input:not([type=checkbox]), textarea, select");
  if (event.key === "Escape" && isTyping && !dialogs.isOpen()) event.target.blur();
  if (isTyping || dialogs.isOpen() || event.altKey) return;
  if (event.ctrlKey || event.metaKey) {
    if (event.key === "a") {
      state.selected = new Set(state.order);
      drawSelection();
    } else if (event.key === "z") undo();
    else return;
  } else if (event.key === "Escape") {
    if (state.selected.size) clear();
    else if (list.isSheet()) sheet(false);
    else toggleList(false);
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const by = list.isSheet() ? list.columns() : 1;
    move(event.key === "ArrowDown" ? by : -by, event.shiftKey);
  } else if (event.key === "Enter" && (list.isSheet() || event.target.id === "list")) sheet(false);
  else if (KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]) {
    KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]();
  } else return;
  event.preventDefault();
}

list.whenPicked((id, event) => {
  if (event.isOpen) {
    go(id);
    return sheet(false);
  }
  if (event.target.type === "checkbox") toggle(id);
  else if (event.shiftKey) selectTo(id);
  else if (event.ctrlKey || event.metaKey) toggle(id);
  else {
    go(id);
    toggleList(false);
  }
  drawSelection();
});

saving.whenChanged((ids) => {
  concept.forget(ids);
  list.draw(ids);
  concept.drawDecision();
  drawCounts();
});

function listen() {
  document.addEventListener("keydown", onKey);
  const buttons = {
    approve: () => decide("approved"),
    reject: () => decide("rejected"),
    undo,
    previous: () => move(-1),
    next: () => move(1),
    note,
    compare,
    zoom: () => dialogs.zoom(0),
    "sheet-toggle": () => sheet(),
    "list-toggle": () => toggleList(),
    "help-button": dialogs.help,
    "bulk-approve": () => decide("approved"),
    "bulk-reject": () => decide("rejected"),
    "bulk-undecide": () => decide("undecided"),
    "bulk-clear": clear,
  };
  for (const [id, action] of Object.entries(buttons)) get(id).addEventListener("click", action);
  for (const name of FILTERS) get(name).addEventListener("input", refresh);
  get("filters").addEventListener("submit", (event) => event.preventDefault());
  get("reviewer").addEventListener("change", () => localStorage.setItem("textinv.reviewer", saving.reviewer()));
  get("concept").addEventListener("click", (event) => {
    const tile = event.target.closest("button.tile");
    const step = event.target.closest("button.look")?.dataset.step;
    if (tile) dialogs.zoom([...get("concept").querySelectorAll("button.tile")].indexOf(tile));
    else if (step) {
      state.look = Number(step);
      concept.draw();
    } else if (event.target.closest("#nearest")) compare();
  });
  addEventListener("beforeunload", (event) => {
    if (saving.hasUnsaved()) event.preventDefault();
  });
  setInterval(() => saving.poll().catch(() => {}), POLL_MS);
}

function offerTags() {
  const found = new Map();
  for (const { tags } of state.concepts.values()) {
    for (const [name, value] of Object.entries(tags)) {
      const key = JSON.stringify([name, value]);
      found.set(key, (found.get(key) ?? 0) + 1);
    }
  }
  const names = [...found.keys()].sort((a, b) => a.localeCompare(b, undefined, { numeric: true })).slice(0, MOST_TAGS);
  for (const key of names) {
    const [name, value] = JSON.parse(key);
    get("tag").append(make("option", { value: key }, `${name}: ${value} (${found.get(key)})`));
  }
  get("tag").hidden = !found.size;
}

async function start() {
  const answer = await fetch("/api/concepts?fresh=1");
  if (!answer.ok) {
    tell(await answer.text(), true);
    return;
  }
  const { about, concepts } = await answer.json();
  saving.load(concepts);
  get("output").textContent = `\u200e${about.output}\u200e`; // left to right, though the element isn't
  get("output").title = about.output;
  document.title = `Review of ${about.output}`;
  get("reviewer").value = localStorage.getItem("textinv.reviewer") || about.reviewer;
  offerTags();
  const { undecided } = counts();
  if (!undecided) get("verdict").value = "all";
  listen();
  refresh();
  say(`${concepts.length} concepts. ${spoken()}`);
  document.body.dataset.ready = "yes";
}

start().catch((error) => tell(`The page could not be loaded: ${error.message}`, true));
