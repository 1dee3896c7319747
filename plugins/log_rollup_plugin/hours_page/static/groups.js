// The groups of a complete hour: the largest first, with a search box. The answers of the API are bounded.

import { AnswerError, ask } from "./airflow.js";
import { card, consoleLink, copyButton, table } from "./cards.js";
import { el, number, ratio, size } from "./dom.js";

const SEARCH_PAUSE_MS = 300;
const ALL = 1000;

// What the user has chosen; it outlives the regular updates of the page.
const chosen = { hour: "", search: "", all: false };
let asked = 0;
let timer = 0;

/** The card of the groups; null if the hour has none. */
export function groups({ stream, hour, groups: found }) {
  if (!found) return null;
  const place = `${stream.name} ${hour}`;
  if (chosen.hour !== place) Object.assign(chosen, { hour: place, search: "", all: false });
  const status = el("span", { class: "quiet", role: "status" });
  const rows = el("div", {});
  const show = (answer) => {
    status.textContent = summary(answer);
    more.hidden = answer.groups.length >= Math.min(answer.found, ALL);
    rows.replaceChildren(answer.groups.length ? rowsOf(answer.groups) : "");
  };
  const read = async () => {
    const current = ++asked;
    status.textContent = "Reading …";
    try {
      const parameters = { search: chosen.search, ...(chosen.all ? { most: ALL } : {}) };
      const answer = await ask(`/${encodeURIComponent(stream.name)}/hours/${encodeURIComponent(hour)}/groups`, parameters);
      if (current === asked) show(answer);
    } catch (error) {
      if (!(error instanceof AnswerError)) throw error;
      if (current === asked) status.textContent = error.message;
    }
  };
  const search = el("input", {
    type: "search",
    placeholder: "Search groups",
    "aria-label": "Search groups",
    maxlength: 200,
    value: chosen.search,
    "data-key": "search groups",
    input: () => {
      chosen.search = search.value;
      clearTimeout(timer);
      timer = setTimeout(read, SEARCH_PAUSE_MS);
    },
  });
  const showAll = () => {
    chosen.all = true;
    read();
  };
  const more = el("button", { type: "button", class: "small", click: showAll, "data-key": "all groups" }, "Show all");
  show(found);
  if (chosen.search || chosen.all) read();
  return card(`Groups (${number(found.total)})`, el("div", { class: "tools" }, search, status, more), rows);
}

function summary({ total, found, groups: shown }) {
  const matching = found < total ? ` of ${number(found)} matching` : ` of ${number(total)}`;
  if (!found) return "No group matches.";
  return shown.length < found ? `The ${number(shown.length)} largest${matching}` : `All${matching}`;
}

/** The table of groups; with stored bytes if the parts of any group are compressed. */
function rowsOf(found) {
  const isCompressed = found.some((group) => group.bytes_stored);
  const heads = ["Group", "Raw objects", "Size", ...(isCompressed ? ["Stored", "Ratio"] : []), "Parts", "Prefix"];
  return table(heads, found.map((group) => row(group, isCompressed)), isCompressed ? [1, 2, 3, 4, 5] : [1, 2, 3]);
}

function row({ name, objects, bytes_in: bytes, bytes_stored: stored, parts, damaged, place }, isCompressed) {
  return el(
    "tr",
    {},
    el("td", {}, el("code", {}, name), damaged ? el("span", { class: "quiet" }, ` ${number(damaged)} damaged objects`) : null),
    el("td", { class: "number" }, number(objects)),
    el("td", { class: "number", title: `${number(bytes)} bytes` }, size(bytes)),
    isCompressed ? el("td", { class: "number", title: stored ? `${number(stored)} bytes` : null }, stored ? size(stored) : "") : null,
    isCompressed ? el("td", { class: "number" }, stored ? ratio(bytes, stored) : "") : null,
    el("td", { class: "number" }, number(parts)),
    el("td", {}, el("div", { class: "prefix" }, el("code", {}, place.url), copyButton(place.url, `copy ${place.url}`), consoleLink(place.console))),
  );
}
