// Draws characters: one JSON {style, options, over, disc} a line in, one SVG (as a JSON string) a line out.
//
// `over`: SVG that is drawn over the character, in its style's own coordinates. `disc`: colour (hex) of a round picture
// that holds the character, so that the background shows around it. Either may be left out.
//
// Every choice is made by the caller (one-element lists, probabilities 0 or 100),
// so the same line gives the same SVG and DiceBear's own dice are never rolled.
import { createInterface } from "node:readline";
import { createAvatar } from "@dicebear/core";
import * as collection from "@dicebear/collection";

function composed(style, over, disc) {
  const create = (...inputs) => {
    const drawn = style.create(...inputs);
    let body = drawn.body + (over ?? "");
    if (disc) {
      const [, , size] = drawn.attributes.viewBox.split(" ").map(Number);
      const face = `<g transform="translate(${0.15 * size} ${0.15 * size}) scale(0.7)">${body}</g>`;
      body = `<circle cx="${size / 2}" cy="${size / 2}" r="${0.4 * size}" fill="#${disc}"/>${face}`;
    }
    return { ...drawn, body };
  };
  return { ...style, create };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { style, options, over, disc } = JSON.parse(line);
  const svg = createAvatar(composed(collection[style], over, disc), { seed: "", clip: false, ...options }).toString();
  if (!process.stdout.write(JSON.stringify(svg) + "\n")) {
    await new Promise((resolve) => process.stdout.once("drain", resolve));
  }
}
