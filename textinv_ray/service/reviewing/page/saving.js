// Decisions on their way to the store. The page shows them at once; what can't be stored is shown as it was before.
import { get, tell } from "./dom.js";
import { state } from "./state.js";

const AT_ONCE = 250; // decisions in a request
const waiting = []; // groups of decisions that aren't stored yet, in order
const pending = new Map(); // id -> how many of them are of this concept
const known = new Map(); // id -> decided_at of the decision in the store that this page knows of
const undoable = []; // groups of {id, verdict, note} to go back to
let isSending = false;
let settled = 0; // groups so far
let onChange = () => {};

export const whenChanged = (callback) => (onChange = callback);
export const isPending = (id) => pending.has(id);

export function reviewer() {
  return get("reviewer").value.trim();
}

/** Decides on concepts. changes: [{id, verdict, note}]. Returns whether it was begun. */
export function decide(changes, isUndo = false) {
  if (!reviewer()) {
    tell("Who decides? Enter your name first.", true);
    get("reviewer").focus();
    return false;
  }
  const group = [];
  for (const { id, verdict: wanted, note } of changes) {
    const concept = state.concepts.get(id);
    if (!concept || concept.status === "failed") continue;
    const before = concept.decision;
    const decision = { verdict: wanted, note: note ?? "", reviewer: reviewer(), decided_at: Date.now() / 1000 };
    group.push({ id, before, decision });
    concept.decision = decision;
    pending.set(id, (pending.get(id) ?? 0) + 1);
  }
  if (!group.length) return false;
  if (!isUndo) {
    undoable.push(group.map(({ id, before }) => ({ id, verdict: before?.verdict ?? "undecided", note: before?.note ?? "" })));
  }
  for (let first = 0; first < group.length; first += AT_ONCE) waiting.push(group.slice(first, first + AT_ONCE));
  onChange(group.map(({ id }) => id));
  send();
  return true;
}

/** Takes the last decision or bulk decision back. Returns the ids, or none when there is nothing to take back. */
export function undo() {
  const group = undoable.pop();
  if (!group || !decide(group, true)) return [];
  return group.map(({ id }) => id);
}

async function send() {
  if (isSending) return;
  isSending = true;
  while (waiting.length) {
    showSaving();
    const group = waiting[0];
    const decisions = group.map(({ id, decision }) => ({
      concept_id: id,
      fingerprint: state.concepts.get(id).fingerprint,
      verdict: decision.verdict,
      note: decision.note,
      seen: known.get(id) ?? null,
    }));
    try {
      const answer = await fetch("/api/decisions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ reviewer: group[0].decision.reviewer, decisions }),
      });
      if (answer.status >= 500) throw new Error((await answer.json()).message);
      waiting.shift();
      if (answer.ok) settle(group, (await answer.json()).answers);
      else refuse(group, answer.status === 403 ? await answer.text() : (await answer.json()).message);
    } catch (error) {
      showSaving(error.message);
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  isSending = false;
  showSaving();
}

function settle(group, answers) {
  settled++;
  const problems = [];
  group.forEach(({ id, before }, index) => {
    const answer = answers[index];
    const isLast = release(id);
    const concept = state.concepts.get(id);
    if (answer.decision) known.set(id, answer.decision.decided_at);
    if (answer.error) problems.push(`${id}: ${answer.message}`);
    if (!isLast) return;
    if (answer.decision) concept.decision = answer.decision;
    else if (answer.error) concept.decision = before;
  });
  if (problems.length) tell(`Not stored: ${problems.slice(0, 3).join("; ")}${problems.length > 3 ? "; ..." : ""}`, true);
  onChange(group.map(({ id }) => id));
}

function refuse(group, why) {
  for (const { id, before } of group) {
    if (release(id)) state.concepts.get(id).decision = before;
  }
  tell(`Not stored: ${why}`, true);
  onChange(group.map(({ id }) => id));
}

/** One decision less of this concept is on its way. Returns whether it was the last. */
function release(id) {
  const left = pending.get(id) - 1;
  if (left) pending.set(id, left);
  else pending.delete(id);
  return !left;
}

function showSaving(error) {
  const left = waiting.reduce((sum, group) => sum + group.length, 0);
  const place = get("saving");
  place.textContent = error ? `${left} not stored yet: ${error}` : left > 20 ? `storing ${left} ...` : "";
  place.classList.toggle("error", Boolean(error));
}

/** Takes over what others have decided. */
export async function poll() {
  if (document.hidden) return;
  const before = settled;
  const answer = await fetch("/api/decisions");
  if (!answer.ok) return;
  const decisions = await answer.json();
  if (settled !== before) return; // older than what is known by now
  const changed = [];
  for (const [id, decision] of Object.entries(decisions)) {
    const concept = state.concepts.get(id);
    if (!concept || isPending(id)) continue;
    if (known.get(id) === decision.decided_at) continue;
    known.set(id, decision.decided_at);
    if (decision.reviewer !== reviewer()) tell(`${decision.reviewer}: ${id} is ${decision.verdict}`);
    concept.decision = decision;
    changed.push(id);
  }
  if (changed.length) onChange(changed);
}

/** Takes over the concepts of the store, with their decisions. */
export function load(concepts) {
  for (const concept of concepts) {
    state.concepts.set(concept.id, concept);
    if (concept.decision) known.set(concept.id, concept.decision.decided_at);
  }
}

export const hasUnsaved = () => waiting.length > 0;
