// Draws characters: one JSON {style, options} a line in, one SVG (as a JSON string) a line out.
//
// Every choice is made by the caller (one-element lists, probabilities 0 or 100),
// so the same line gives the same SVG and DiceBear's own dice are never rolled.
import { createInterface } from "node:readline";
import { createAvatar } from "@dicebear/core";
import * as collection from "@dicebear/collection";

for await (const line of createInterface({ input: process.stdin })) {
  const { style, options } = JSON.parse(line);
  const svg = createAvatar(collection[style], { seed: "", clip: false, ...options }).toString();
  if (!process.stdout.write(JSON.stringify(svg) + "\n")) {
    await new Promise((resolve) => process.stdout.once("drain", resolve));
  }
}
