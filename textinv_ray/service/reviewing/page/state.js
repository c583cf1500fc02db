// What is shown: all concepts, those that pass the filters in order, the current one, the selection.

export const state = {
  concepts: new Map(), // id -> summary
  order: [], // ids that pass the filters
  place: new Map(), // id -> its index in `order`
  current: null, // id
  selected: new Set(),
  anchor: null, // id where a range selection began
  look: null, // step whose samples are shown; null: the last
  isComparing: false,
};

export const verdict = (concept) =>
  concept.status === "failed" ? "failed" : concept.decision ? concept.decision.verdict : "undecided";

export const current = () => state.concepts.get(state.current);

const value = (number, missing) => (number === null || number === undefined ? missing : number);
const byName = (a, b) => a.id.localeCompare(b.id, undefined, { numeric: true });
const SORTS = {
  gain: (a, b) => value(a.gain, -9) - value(b.gain, -9),
  "-gain": (a, b) => value(b.gain, -9) - value(a.gain, -9),
  image: (a, b) => value(a.image, -9) - value(b.image, -9),
  text: (a, b) => value(a.text, 9) - value(b.text, 9),
  name: () => 0,
  recent: (a, b) => value(b.decision?.decided_at, 0) - value(a.decision?.decided_at, 0),
};

function passes(concept, filters) {
  const of = verdict(concept);
  if (filters.verdict !== "all" && of !== filters.verdict) return false;
  const kinds = concept.warnings.map((warning) => warning.kind);
  if (filters.warning === "any" && !kinds.length) return false;
  if (filters.warning === "none" && kinds.length) return false;
  if (filters.warning && !["any", "none"].includes(filters.warning) && !kinds.includes(filters.warning)) return false;
  if (filters.tag) {
    const [name, tag] = JSON.parse(filters.tag);
    if (concept.tags[name] !== tag) return false;
  }
  return filters.search
    .toLowerCase()
    .split(/\s+/)
    .every((word) => searchable(concept).includes(word));
}

function searchable(concept) {
  const tags = Object.entries(concept.tags).flat();
  const parts = [concept.id, concept.token, concept.initializer, concept.property, concept.error, ...tags];
  return [...parts, concept.decision?.note ?? "", concept.decision?.reviewer ?? ""].join("\n").toLowerCase();
}

/** Applies filters and order. The current concept stays if it passes them, else it is the first. */
export function arrange(filters) {
  const found = [...state.concepts.values()].filter((concept) => passes(concept, filters));
  const sort = SORTS[filters.sort];
  found.sort((a, b) => sort(a, b) || byName(a, b));
  state.order = found.map((concept) => concept.id);
  state.place = new Map(state.order.map((id, index) => [id, index]));
  for (const id of state.selected) if (!state.place.has(id)) state.selected.delete(id);
  if (!state.place.has(state.current)) state.current = state.order[0] ?? null;
  state.look = null;
}

/** The id `by` places further on, or the same at an end. */
export function neighbour(by) {
  const index = state.place.get(state.current) ?? 0;
  return state.order[Math.min(Math.max(index + by, 0), state.order.length - 1)] ?? null;
}

/** The next undecided id after the current one, from the start again at the end; null when there is none. */
export function nextUndecided() {
  const start = state.place.get(state.current) ?? -1;
  for (let by = 1; by <= state.order.length; by++) {
    const id = state.order[(start + by) % state.order.length];
    if (id !== state.current && verdict(state.concepts.get(id)) === "undecided") return id;
  }
  return null;
}

export function counts() {
  const found = { approved: 0, rejected: 0, undecided: 0, failed: 0 };
  for (const concept of state.concepts.values()) found[verdict(concept)]++;
  return found;
}

/** Selects from the anchor to `id`, as they are listed. */
export function selectTo(id) {
  state.anchor ??= state.current;
  const ends = [state.place.get(state.anchor), state.place.get(id)];
  if (ends.includes(undefined)) return;
  const [first, last] = [Math.min(...ends), Math.max(...ends)];
  state.selected = new Set(state.order.slice(first, last + 1));
}

export function toggle(id) {
  if (!state.selected.delete(id)) state.selected.add(id);
  state.anchor = id;
}
