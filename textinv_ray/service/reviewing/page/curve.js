// The curve of a concept's looks: CLIP similarities over steps, and the loss below.
import { make, makeSvg, number } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 96;
const LOSS = 28;
const EDGE = 6;

/** A figure; none when there is nothing to draw. */
export function curve(concept, points) {
  const scored = points.filter((point) => point.image !== null);
  const rule = points.filter((point) => point.rule !== null);
  const losses = points.filter((point) => point.loss !== null);
  if (!scored.length && losses.length < 2) return null;
  const steps = Math.max(1, ...points.map((point) => point.step));
  const x = (step) => EDGE + (step / steps) * (WIDTH - 2 * EDGE);
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + LOSS}`, role: "img", "aria-label": spoken(scored) });
  if (scored.length) {
    const values = [...scored, ...rule].flatMap((point) => [point.image, point.text, point.rule]).filter((value) => value !== null);
    const [low, high] = [Math.min(0, ...values), Math.max(0.1, ...values)];
    const y = (value) => HEIGHT - EDGE - ((value - low) / (high - low)) * (HEIGHT - 2 * EDGE);
    svg.append(makeSvg("line", { class: "zero", x1: EDGE, x2: WIDTH - EDGE, y1: y(0), y2: y(0) }));
    if (concept.image_before !== null) {
      const at = y(concept.image_before);
      svg.append(makeSvg("line", { class: "before", x1: EDGE, x2: WIDTH - EDGE, y1: at, y2: at }));
    }
    if (rule.length) svg.append(line("rule", rule.map((point) => [x(point.step), y(point.rule)])));
    svg.append(line("text", scored.filter((point) => point.text !== null).map((point) => [x(point.step), y(point.text)])));
    svg.append(line("image", scored.map((point) => [x(point.step), y(point.image)])));
    for (const point of scored) {
      const dot = makeSvg("circle", { class: "image", cx: x(point.step), cy: y(point.image), r: 3 });
      dot.append(makeSvg("title"));
      dot.firstChild.textContent = `step ${point.step}: ${number(point.image)}`;
      svg.append(dot);
    }
    if (concept.best_step !== null) {
      const at = x(concept.best_step);
      svg.append(makeSvg("line", { class: "best", x1: at, x2: at, y1: EDGE, y2: HEIGHT - EDGE }));
    }
  }
  if (losses.length > 1) {
    const smooth = smoothed(losses.map((point) => point.loss));
    const [low, high] = [Math.min(...smooth), Math.max(...smooth)];
    const y = (value) => HEIGHT + LOSS - 3 - ((value - low) / (high - low || 1)) * (LOSS - 6);
    svg.append(line("loss", smooth.map((value, index) => [x(losses[index].step), y(value)])));
  }
  const best = concept.best_step === null ? "" : `, kept: step ${concept.best_step}`;
  return make(
    "figure",
    { className: "curve" },
    svg,
    make(
      "figcaption",
      {},
      make("span", { className: "image" }, "image"),
      make("span", { className: "text" }, "text"),
      rule.length ? make("span", { className: "image rule" }, "image, by the stopping rule") : null,
      make("span", { className: "loss" }, "loss (smoothed)"),
      `0 to ${steps} steps${best}`,
    ),
  );
}

function line(kind, places) {
  return makeSvg("polyline", { class: kind, points: places.map((place) => place.map((value) => value.toFixed(1)).join(",")).join(" ") });
}

function smoothed(values) {
  let mean = values[0];
  return values.map((value) => (mean += 0.08 * (value - mean)));
}

function spoken(points) {
  if (!points.length) return "Loss over steps";
  return `CLIP image similarity over steps: ${points.map((point) => `step ${point.step}: ${number(point.image)}`).join(", ")}`;
}
