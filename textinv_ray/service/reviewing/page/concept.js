// The concept that is looked at: training images beside samples before and after, scores, warnings, its nearest.
import { curve } from "./curve.js";
import { get, make, moment, number, pictureUrl, signed } from "./dom.js";
import { current, nextUndecided, state, verdict } from "./state.js";

const place = get("concept");
const details = new Map(); // fingerprint -> promise of what the server knows more
let shownId = null;

/** Draws the current concept. */
export function draw() {
  const concept = current();
  if (!concept) {
    place.replaceChildren(make("p", { className: "empty" }, "No concept passes these filters."));
    shownId = null;
    return;
  }
  place.setAttribute("aria-label", `Concept ${concept.id}, ${verdict(concept)}`);
  const parts = concept.status === "failed" ? [head(concept), make("p", { className: "failure" }, concept.error)] : whole(concept);
  place.replaceChildren(...parts);
  place.classList.toggle("comparing", Boolean(place.querySelector(".compared")));
  if (shownId !== concept.id) place.scrollTop = 0;
  shownId = concept.id;
  if (concept.status !== "failed") {
    fill(concept);
    prefetch();
  }
}

/** Redraws what a decision changes. */
export function drawDecision() {
  const concept = current();
  if (!concept || shownId !== concept.id) return;
  place.setAttribute("aria-label", `Concept ${concept.id}, ${verdict(concept)}`);
  place.querySelector(".verdict")?.replaceWith(badge(concept));
}

/** Every picture of the current concept, in the order of zooming: [{src, text}]. */
export function pictures() {
  return [...place.querySelectorAll("button.tile img")].map((img) => ({ src: img.src.replace("size=medium", "size=full"), text: img.alt }));
}

export const lookOf = (concept) =>
  state.look !== null && concept.looks.includes(state.look) ? state.look : concept.looks[concept.looks.length - 1];

function whole(concept) {
  const nearest = state.concepts.get(concept.nearest);
  const isCompared = state.isComparing && nearest && nearest.status !== "failed";
  return [
    head(concept),
    ...concept.warnings.map((warning) => make("p", { className: "warning" }, warning.text)),
    contact(concept, lookOf(concept)),
    isCompared
      ? make(
          "section",
          { className: "compared", "aria-label": `Nearest concept: ${nearest.id}` },
          make("h3", {}, `Nearest: ${nearest.id}, cosine ${number(concept.nearest_cosine)}`),
          contact(nearest, nearest.looks[nearest.looks.length - 1]),
        )
      : null,
    make("div", { className: "facts" }, scores(concept), make("div", { id: "curve" }), beside(concept, nearest), make("div", { id: "opinions" })),
  ].filter(Boolean);
}

function head(concept) {
  const tags = Object.entries(concept.tags).map(([name, value]) => make("span", { className: "tag" }, `${name}: ${value}`));
  const from = concept.status === "failed" ? "" : ` from “${concept.initializer}”, ${concept.property}`;
  return make(
    "div",
    { className: "head" },
    make("h2", {}, concept.id),
    badge(concept),
    make("span", { className: "token" }, make("code", {}, concept.token), from),
    ...tags,
  );
}

function badge(concept) {
  const of = verdict(concept);
  const by = concept.decision && of !== "undecided" ? `, ${concept.decision.reviewer}` : "";
  const note = concept.decision?.note ? ` — “${concept.decision.note}”` : "";
  return make("span", { className: `verdict ${of}` }, of + by + note);
}

function contact(concept, look) {
  const training = range(concept.training).map((index) =>
    tile(concept, "training", index, `${concept.id}: training image ${index + 1} of ${concept.training}`),
  );
  const columns = [make("h3", { className: "of-training" }, "Training images"), make("div", { className: "tiles training" }, training)];
  const first = concept.looks.includes(0) ? 0 : null;
  const rows = concept.prompts.map((prompt, row) => {
    const samples = (step, word) =>
      range(concept.per_prompt).map((seed) => {
        const text = `${concept.id}: “${prompt.replaceAll("{}", word)}”, step ${step}, seed ${seed}`;
        return tile(concept, String(step), row * concept.per_prompt + seed, text);
      });
    return make(
      "div",
      { className: "prompt", role: "group", "aria-label": prompt.replaceAll("{}", concept.token) },
      make("h4", {}, prompt.replaceAll("{}", concept.token)),
      make("div", { className: "tiles before" }, first === null ? [] : samples(0, concept.initializer)),
      make("div", { className: "tiles after" }, look === undefined ? [] : samples(look, concept.token)),
    );
  });
  return make(
    "div",
    { className: "contact" },
    make("div", { className: "column" }, columns),
    make(
      "div",
      { className: "samples" },
      make("div", { className: "titles" }, make("h3", {}, `Before: ${concept.initializer}`), make("h3", {}, `After: ${concept.token}`, looks(concept, look))),
      rows,
    ),
  );
}

function looks(concept, look) {
  const steps = concept.looks.filter((step) => step > 0);
  if (steps.length < 2) return null;
  const buttons = steps.map((step) =>
    make("button", { type: "button", className: "look", "aria-pressed": step === look, "data-step": step }, String(step)),
  );
  return make("span", { className: "looks", role: "group", "aria-label": "Samples of step" }, buttons);
}

function tile(concept, grid, index, text) {
  const img = make("img", { src: pictureUrl(concept, grid, index, "medium"), alt: text, decoding: "async" });
  img.addEventListener("error", () => img.parentElement.replaceWith(make("span", { className: "missing", role: "img", "aria-label": `${text}: missing` }, "missing")));
  return make("button", { type: "button", className: "tile", title: text }, img);
}

function scores(concept) {
  const row = (name, before, after) => {
    const gain = before === null || after === null ? null : after - before;
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      make("td", {}, number(before)),
      make("td", {}, number(after)),
      make("td", { className: gain < 0 ? "worse" : "better" }, signed(gain)),
    );
  };
  const heads = ["CLIP similarity", "before", "after", "gain"].map((text) => make("th", { scope: "col" }, text));
  const best = concept.best_step === null ? "" : `, best at ${concept.best_step}`;
  const stopped = concept.stopped === "steps" ? "" : ` (${concept.stopped})`;
  return make(
    "div",
    { className: "scores" },
    make("table", {}, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, row("image", concept.image_before, concept.image), row("text", concept.text_before, concept.text))),
    make("p", {}, `${concept.steps} steps${stopped}${best}; norm ${number(concept.norm, 2)}; ${concept.vectors} vector${concept.vectors === 1 ? "" : "s"}`),
    make("p", {}, `nearest words: ${concept.nearest_words}`),
  );
}

function beside(concept, nearest) {
  if (!nearest || nearest.status === "failed") return make("div");
  const look = nearest.looks[nearest.looks.length - 1];
  const src = [pictureUrl(nearest, "training", 0, "small"), look === undefined ? null : pictureUrl(nearest, String(look), 0, "small")];
  return make(
    "button",
    { type: "button", className: "nearest", id: "nearest", title: "Compare (C)" },
    src.filter(Boolean).map((url) => make("img", { src: url, alt: "" })),
    make("span", {}, "nearest concept", make("br"), make("b", {}, nearest.id), make("br"), `cosine ${number(concept.nearest_cosine)}`),
  );
}

/** Adds what has to be asked for: the curves, and who said what. */
async function fill(concept) {
  if (!details.has(concept.fingerprint)) {
    details.set(concept.fingerprint, fetch(`/api/concepts/${encodeURIComponent(concept.id)}`).then((answer) => (answer.ok ? answer.json() : null)));
    if (details.size > 50) details.delete(details.keys().next().value);
  }
  const detail = await details.get(concept.fingerprint).catch(() => null);
  if (!detail || state.current !== concept.id) return;
  const drawn = curve(concept, detail.points);
  if (drawn) get("curve")?.replaceChildren(drawn);
  const lines = [...detail.earlier_words.map((one) => [one, " (an earlier word)"]), ...detail.opinions.map((one) => [one, ""])];
  if (!lines.length) return;
  const items = lines.map(([one, of]) =>
    make("li", {}, make("b", {}, one.verdict), ` ${one.reviewer}, ${moment(one.decided_at)}${of}`, one.note ? make("q", {}, one.note) : null),
  );
  get("opinions")?.replaceChildren(make("h3", {}, "Said before"), make("ul", {}, items));
}

/** After a decision the server knows more. */
export function forget(ids) {
  for (const id of ids) details.delete(state.concepts.get(id)?.fingerprint);
}

/** The pictures of the concept that comes next are fetched while this one is looked at. */
function prefetch() {
  const next = state.concepts.get(nextUndecided());
  if (!next || next.status === "failed") return;
  const of = [["training", next.training], ...[0, lookOf(next)].filter((step) => next.looks.includes(step)).map((step) => [String(step), next.prompts.length * next.per_prompt])];
  for (const [grid, count] of of) for (const index of range(count)) new Image().src = pictureUrl(next, grid, index, "medium");
}

const range = (count) => Array.from({ length: count }, (_, index) => index);
