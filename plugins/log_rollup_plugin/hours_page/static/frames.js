// The frames of a compressed part, in a row below the part's own. They are read when they are shown for the first time.

import { AnswerError, ask } from "./airflow.js";
import { el, glyph, number, size } from "./dom.js";

const HEADS = ["Frame", "Offset", "Stored", "Content", "Raw objects"];

// The parts whose frames are shown, and the answers by part; they outlive the regular updates of the page. An answer stays
// valid, because other bytes would have another name.
const open = new Set();
const answers = new Map();

/** The button that shows the frames of a part, and the row for them. `columns` is the number of columns of the table. */
export function frames({ stream, hour }, part, index, columns) {
  const key = `${stream.name} ${hour} ${part.name}`;
  const id = `frames-${index}`;
  const content = el("div", { class: "frames" });
  const row = el("tr", { id, class: "detail", hidden: true }, el("td", { colspan: columns }, content));
  const status = (text) => content.replaceChildren(el("p", { class: "quiet", role: "status" }, text));
  const read = async () => {
    status("Reading …");
    try {
      const path = `/${encodeURIComponent(stream.name)}/hours/${encodeURIComponent(hour)}/frames`;
      answers.set(key, await ask(path, { part: part.name }));
      show();
    } catch (error) {
      if (!(error instanceof AnswerError)) throw error;
      status(error.message);
      if (error.retryMs !== null) setTimeout(() => (open.has(key) && row.isConnected ? read() : null), error.retryMs);
    }
  };
  const show = () => {
    const shown = open.has(key);
    row.hidden = !shown;
    button.setAttribute("aria-expanded", String(shown));
    if (shown && answers.has(key)) content.replaceChildren(...details(part, answers.get(key)));
    return shown && !answers.has(key);
  };
  const toggle = () => {
    if (!open.delete(key)) open.add(key);
    if (show()) read();
  };
  const button = el(
    "button",
    {
      type: "button",
      class: "small disclosure",
      click: toggle,
      "aria-controls": id,
      "aria-label": `${number(part.frames)} frames of ${part.name}`,
      "data-key": `frames ${part.name}`,
    },
    glyph("forward"),
    number(part.frames),
  );
  if (show()) read();
  return { button, row };
}

function details(part, { total, frames: shown }) {
  const rest = total - shown.length;
  const head = HEADS.map((text) => el("th", { scope: "col", class: "number" }, text));
  return [
    el(
      "table",
      { "aria-label": `Frames of ${part.name}` },
      el("thead", {}, el("tr", {}, head)),
      el("tbody", {}, shown.map(row)),
    ),
    rest ? el("p", { class: "quiet" }, `The first ${number(shown.length)} are shown, and there are ${number(rest)} more.`) : "",
  ];
}

function row({ offset, size: stored, content_size: content, objects }, index) {
  return el(
    "tr",
    {},
    el("th", { scope: "row", class: "number" }, number(index)),
    el("td", { class: "number" }, number(offset)),
    el("td", { class: "number", title: `${number(stored)} bytes` }, size(stored)),
    el("td", { class: "number", title: `${number(content)} bytes` }, size(content)),
    el("td", { class: "number" }, number(objects)),
  );
}
