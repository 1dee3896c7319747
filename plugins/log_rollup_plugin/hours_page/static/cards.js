// Parts of the view of an hour: cards, lists, tables, bars, and prefixes with their buttons.

import { el, glyph } from "./dom.js";
import { away } from "./header.js";

export const card = (title, ...children) => el("section", { class: "card" }, el("h3", {}, title), ...children.flat());

export function list(rows) {
  return el("dl", {}, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

export function table(heads, rows, numbers) {
  const head = heads.map((text, at) => el("th", { scope: "col", class: numbers.includes(at) ? "number" : null }, text));
  // A wide table scrolls separately; tabindex makes it scroll with the keyboard too.
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": heads[0] },
    el("table", { class: "rows" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)),
  );
}

export function fillBar(full) {
  const percent = Math.min(100, full * 100);
  const bar = el("span", {});
  bar.style.width = `${percent}%`;
  return el("span", { class: "fill" }, el("span", { class: "track", "aria-hidden": "true" }, bar), `${Math.round(percent)} %`);
}

/** A button that copies a text. */
export const copyButton = (text, key) =>
  el("button", { type: "button", class: "small", click: (event) => copy(event.currentTarget, text), "data-key": key }, glyph("copy"), "Copy");

/** A link to a prefix in the AWS console; null for other servers. */
export const consoleLink = (url) => (url ? away(url, "AWS console", "button small", true) : null);

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // There may be no clipboard API without TLS or in a frame; execCommand still works there.
    const area = el("textarea", { class: "sprites" }, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.lastChild.textContent = "Copied";
}
