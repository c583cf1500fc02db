// Elements. Whatever comes from an output becomes text, never markup.

export const get = (id) => document.getElementById(id);

/** An element with properties, attributes (of names with a dash, role and SVG's) and children: nodes or texts. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else if (name === "style") Object.assign(element.style, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const signed = (value) =>
  value === null || value === undefined ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
export const moment = (seconds) => new Date(1000 * seconds).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

/** Tells a screen reader. */
export function say(text) {
  get("said").textContent = text;
}

let hiding;
/** Shows a message for a while. */
export function tell(text, isError = false) {
  const place = get("message");
  place.textContent = text;
  place.classList.toggle("error", isError);
  place.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (place.hidden = true), isError ? 12000 : 5000);
}

/** The address of a picture. size: small, medium or full. */
export function pictureUrl(concept, grid, index, size) {
  const query = `v=${encodeURIComponent(concept.fingerprint.slice(0, 24))}&size=${size}`;
  return `/pictures/${encodeURIComponent(concept.id)}/${grid}/${index}?${query}`;
}
