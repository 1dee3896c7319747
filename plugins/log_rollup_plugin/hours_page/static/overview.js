// All streams: one row for each with its last 48 hours, those with problems first.

import { clock, counted, dayOnly, el, glyph, number, share, size, span } from "./dom.js";
import { STATES, STATES_OF_ROWS, address, age, chip } from "./header.js";
import { withTip } from "./tip.js";

/** The problems of a stream, the worst first: the state whose colours it has, its sign, its name, and its meaning. */
const PROBLEMS = {
  unreadable: ["unknown", "unknown", "Not readable", "the bucket could not be read"],
  failed: ["failed", "failed", "Failed", "the run of an hour failed, or its _SUCCESS cannot be read"],
  missing: ["missing", "missing", "Missing", "an hour has ended, and has neither a completion marker nor an unfinished run"],
  behind: ["late", "late", "Behind", "an hour should be complete by now"],
  silent: ["silent", "silent", "Silent", "the last complete hours have no objects, unlike the same hours of earlier weeks"],
  shrunk: ["silent", "shrunk", "Shrunk", "the last complete hours have less than half of the bytes of earlier weeks"],
  groups: ["silent", "groups", "Groups", "groups are silent or have shrunk, compared with earlier weeks"],
  late: ["objects", "objects", "Late objects", "log_rollup_late found raw objects that differ from the packed ones"],
  paused: ["waiting", "waiting", "Paused", "Airflow creates no runs: the Dag is paused, or not known yet"],
};
const ORDER = Object.keys(PROBLEMS);
const FAILURES = ["failed", "damaged", "missing"];
const RARE_STATES = ["unknown", "damaged", "open"];

// The height of most rows. Those that a screen shows get their squares at once, the others while the browser is idle.
const ROW_PX = 30;
const SLICE_MS = 8;

// What the user has chosen; it outlives the regular updates of the page.
const chosen = { text: "", problem: null };
// The elements of the page.
let shown = null;
// The row of each stream, with the data that it shows; `squares` is the element whose squares are not drawn yet, or null.
const rows = new Map();

/** Show or update the overview. */
export function showOverview(view, page, refresh) {
  document.title = "All streams";
  if (!shown || !page.contains(shown.list)) build(page);
  page.querySelector(".notice.fresh")?.remove();
  Object.assign(shown, { view, refresh });
  update();
}

function build(page) {
  const tip = el("div", { class: "tip", role: "presentation", hidden: true });
  const filter = el("input", {
    type: "search",
    placeholder: "Filter streams",
    "aria-label": "Filter streams",
    maxlength: 100,
    value: chosen.text,
    input: () => {
      chosen.text = filter.value;
      update();
    },
  });
  const list = el("div", { class: "streams", role: "grid", "aria-label": "Streams" });
  const parts = { bar: el("div", { class: "end" }), head: el("div", {}), status: el("span", { class: "quiet", role: "status" }), legend: el("div", {}) };
  list.addEventListener("keydown", moveFocus);
  withTip(list, tip, tipOf);
  shown = { list, tip, ...parts };
  page.replaceChildren(
    el("header", { class: "bar" }, el("h1", {}, "All streams"), filter, parts.status, parts.bar),
    parts.head,
    el("section", { class: "card", "aria-label": "Streams" }, parts.legend, list, tip),
    el(
      "p",
      { class: "foot" },
      "All times are UTC. The squares, the counts and the bytes are those of the last 48 hours that have ended. ",
      "Silent and shrunk streams and groups are found by their last 3 complete hours, compared with the same hours of the same weekday in up to 4 earlier weeks.",
    ),
  );
}

/** Show the present data with the present choice. Rows whose data has not changed stay as they are. */
function update() {
  const { view, list } = shown;
  const sorted = [...view.streams].sort((one, other) => rank(one) - rank(other));
  const wanted = chosen.text.trim().toLowerCase();
  const matching = sorted.filter(
    ({ name, problems }) => name.toLowerCase().includes(wanted) && (!chosen.problem || problems.includes(chosen.problem)),
  );
  const key = document.activeElement?.dataset?.key;
  shown.bar.replaceChildren(age(view.bucket, view.now, shown.refresh));
  shown.head.replaceChildren(summary(view.streams));
  if (key && document.activeElement === document.body) document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  shown.legend.replaceChildren(legend(view.streams));
  shown.status.textContent = matching.length < sorted.length ? `${number(matching.length)} of ${number(sorted.length)} streams` : "";
  const elements = [heading(view.hours), ...matching.map((stream) => rowOf(stream, view.hours))];
  const first = Math.ceil(innerHeight / ROW_PX);
  for (const { name } of matching.slice(0, first)) fillSquares(name);
  const same = elements.length === list.children.length && elements.every((one, at) => one === list.children[at]);
  if (!same) replaceRows(list, elements);
  fillWhenIdle(matching.slice(first).map(({ name }) => name));
  if (!list.querySelector("[tabindex='0']")) list.querySelector(".row a")?.setAttribute("tabindex", 0);
}

/** Replace the rows, keeping the keyboard focus. */
function replaceRows(list, elements) {
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.dataset.key;
  if (key) fillSquares(focused.closest(".row").dataset.stream);
  list.replaceChildren(...elements);
  if (!key) return;
  const link = list.querySelector(`[data-key="${CSS.escape(key)}"]`);
  for (const other of list.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  if (link) link.tabIndex = 0;
  link?.focus({ preventScroll: true });
}

const rank = ({ problems }) => (problems.length ? ORDER.indexOf(problems[0]) : ORDER.length);
const isWhole = ({ pending, error, incomplete }) => !pending && !error && !incomplete;

/** The answer to "is everything whole?", and a button for each kind of problem that filters by it. */
function summary(streams) {
  const whole = streams.filter(isWhole).length;
  const unread = streams.filter(({ pending }) => pending).length;
  const problems = streams.filter((one) => one.problems.length).length;
  const due = streams.reduce((sum, one) => sum + one.due, 0);
  const incomplete = streams.reduce((sum, one) => sum + one.incomplete, 0);
  const some = `${number(whole)} of ${number(streams.length)} streams`;
  const verb = whole === 1 ? "is" : "are";
  const broken = streams.length - whole - unread;
  let [state, title] = ["failed", `${some} ${verb} whole.`];
  if (whole === streams.length) [state, title] = ["complete", problems ? "Every hour that should be complete is." : "Everything is whole."];
  else if (unread) [state, title] = [broken ? "failed" : "unknown", `${some} ${verb} known to be whole; ${number(unread)} ${unread === 1 ? "is" : "are"} being read.`];
  const hours = unread ? "" : `Of ${number(due)} hours that should be complete, ${number(due - incomplete)} are. `;
  const attention = problems ? `${number(problems)} of ${number(streams.length)} streams ${problems === 1 ? "needs" : "need"} attention:` : `${counted(streams.length, "stream")}, none needs attention.`;
  return el(
    "section",
    { class: "card whole", "data-state": state, role: "status" },
    el("span", { class: "sample large", "data-state": state }, glyph(state)),
    el("div", {}, el("h2", {}, title), el("p", { class: "quiet" }, hours, attention), problemFilters(streams)),
  );
}

function problemFilters(streams) {
  const counts = ORDER.map((name) => [name, streams.filter(({ problems }) => problems.includes(name)).length]).filter(([, count]) => count);
  if (chosen.problem && !counts.some(([name]) => name === chosen.problem)) chosen.problem = null;
  if (!counts.length) return null;
  const button = (name, count) =>
    el(
      "button",
      {
        type: "button",
        class: "small",
        title: PROBLEMS[name][3],
        "aria-pressed": String(chosen.problem === name),
        "data-key": `problem ${name}`,
        click: () => {
          chosen.problem = chosen.problem === name ? null : name;
          update();
        },
      },
      problemSign(name),
      `${PROBLEMS[name][2]} `,
      el("b", {}, number(count)),
    );
  return el("div", { class: "filters", role: "group", "aria-label": "Show only" }, counts.map(([name, count]) => button(name, count)));
}

const problemSign = (name) => el("span", { class: "sample", "data-state": PROBLEMS[name][0] }, glyph(PROBLEMS[name][1]));
const problemChip = (name, text) => el("span", { class: "chip", "data-state": PROBLEMS[name][0], title: PROBLEMS[name][3] }, glyph(PROBLEMS[name][1]), text);

function legend(streams) {
  const found = new Set(streams.flatMap(({ states }) => states));
  const names = Object.keys(STATES_OF_ROWS).filter((state) => !RARE_STATES.includes(state) || found.has(state));
  return el(
    "ul",
    { class: "legend", "aria-label": "Legend" },
    names.map((state) => el("li", { title: STATES_OF_ROWS[state][1] }, el("span", { class: "sample", "data-state": state }, glyph(state)), STATES_OF_ROWS[state][0])),
  );
}

let head = null;

/** The headings; the same element as long as the hours are the same. */
function heading(hours) {
  if (head?.dataset.hours !== hours[0]) {
    const column = (text, kind) => el("span", { role: "columnheader", class: kind }, text);
    const marks = [0, 24, hours.length - 1].map((at) => el("span", {}, `${dayOnly(hours[at])}, ${clock(hours[at])}`));
    head = el(
      "div",
      { class: "row head", role: "row", "data-hours": hours[0] },
      column("Stream", "name"),
      column("Last complete", "last"),
      el("span", { role: "columnheader", class: "squares", "aria-label": "Last 48 hours" }, marks),
      column("Failures", "number failures"),
      column("Late objects", "number late"),
      column("Bytes in", "number bytes"),
      column("Stored", "number stored"),
      column("Saved", "number saved"),
    );
  }
  return head;
}

function rowOf(stream, hours) {
  const data = JSON.stringify([stream, hours[0]]);
  const known = rows.get(stream.name);
  if (known?.data === data) return known.element;
  const squares = el("div", { class: "squares", role: "presentation" });
  const element = row(stream, squares);
  const wasSeen = known?.element.isConnected && isOnScreen(known.element);
  rows.set(stream.name, { data, element, stream, squares });
  if (wasSeen) fillSquares(stream.name);
  return element;
}

function isOnScreen(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

/** Draw the hours of a stream, unless they are there. */
function fillSquares(name) {
  const known = rows.get(name);
  if (!known.squares) return;
  const link = `${address({ stream: name })}&hour=`;
  known.squares.append(...shown.view.hours.map((hour, at) => square(known.stream, hour, at, link)));
  known.squares = null;
}

let filling = 0;

/** Draw the hours of some streams in short slices, so that the page answers at any time. */
function fillWhenIdle(names) {
  const current = ++filling;
  const left = names.filter((name) => rows.get(name).squares);
  const slice = () => {
    if (current !== filling) return;
    const ends = performance.now() + SLICE_MS;
    while (left.length && performance.now() < ends) fillSquares(left.shift());
    if (left.length) setTimeout(slice);
  };
  // After the first rows have been painted.
  if (left.length) requestAnimationFrame(() => setTimeout(slice));
}

function row(stream, squares) {
  const { name, bytes_in: bytes, bytes_stored: stored, late, failed, missing } = stream;
  const cell = (kind, label, ...content) => el("span", { role: "gridcell", class: kind, "data-label": label }, ...content);
  const failures = failed + missing;
  return el(
    "div",
    { class: "row", role: "row", "data-stream": name },
    el(
      "span",
      { role: "rowheader", class: "name" },
      el("a", { href: address({ stream: name }), "data-key": name, tabindex: -1 }, name),
      stream.problems.length ? el("span", { class: "chips" }, stream.problems.map((one) => problemChip(one, problemText(one, stream)))) : null,
    ),
    cell("last", "Last complete", lastComplete(stream)),
    squares,
    cell("number failures", "Failures", failures ? el("b", {}, number(failures)) : "–"),
    cell("number late", "Late objects", late ? el("b", {}, number(late.objects + late.vanished)) : "–"),
    cell("number bytes", "Bytes in", size(bytes)),
    cell("number stored", "Stored", size(stored)),
    cell("number saved", "Saved", bytes ? share(bytes - stored, bytes) : "–"),
    notes(stream),
  );
}

function lastComplete({ last_complete: last, hours_behind: behind, pending, error }) {
  const when = last ? `${dayOnly(last)}, ${clock(last)}` : pending || error ? "not read" : "none in 48 h";
  return [el("span", {}, when), " ", behind ? el("b", { class: "behind" }, `${number(behind)} h behind`) : null];
}

/** The text of a problem's chip, with a number where there is one. */
function problemText(name, { failed, missing, unusual }) {
  const count = { failed, missing, groups: unusual }[name];
  return count ? `${PROBLEMS[name][2]} ${number(count)}` : PROBLEMS[name][2];
}

/** The problems of a stream in words. */
function notes(stream) {
  const { error, volume, problems, late } = stream;
  const texts = [error, failure(stream)];
  if (problems.includes("silent") || problems.includes("shrunk")) {
    texts.push(`${amount(volume)} in the last 3 complete hours, usual ${usual(volume)}`);
  }
  if (problems.includes("groups")) texts.push(unusualGroups(stream));
  if (late) {
    const parts = [late.objects ? counted(late.objects, "late or changed object") : "", late.vanished ? counted(late.vanished, "vanished one") : ""];
    texts.push(`${parts.filter(Boolean).join(" and ")} in ${counted(late.hours, "complete hour")}`);
  }
  const found = texts.filter(Boolean);
  return found.length ? el("p", { class: "note", role: "gridcell" }, found.join("; ")) : null;
}

/** The newest hour that is failed, damaged or missing, with its reason. */
function failure({ states, reasons }) {
  const at = states.findLastIndex((state) => FAILURES.includes(state));
  return at < 0 ? "" : `${when(shown.view.hours[at])}: ${reasons[at]}`;
}

function unusualGroups({ unusual, groups, first_unusual: first }) {
  const named = first.map(({ name, comparison }) => `${name} (${comparison.state}: ${amount(comparison)}, usual ${usual(comparison)})`);
  const rest = unusual > first.length ? `, and ${number(unusual - first.length)} more` : "";
  return `${number(unusual)} of ${number(groups)} groups: ${named.join(", ")}${rest}`;
}

const amount = ({ objects, bytes_in: bytes }) => (objects ? `${number(objects)} objects with ${size(bytes)}` : "no objects");
const usual = ({ usual_objects: objects, usual_bytes_in: bytes }) => `are ${number(objects)} with ${size(bytes)}`;

// A square of each state. Copies of these are made twice as fast as new ones, and 200 streams have 9,600 of them.
const samples = new Map();

function square(stream, hour, at, link) {
  const state = stream.states[at];
  if (!samples.has(state)) {
    const attributes = { role: "gridcell", class: "hour", "data-state": state, tabindex: -1 };
    samples.set(state, el("a", attributes, state === "none" ? null : glyph(state)));
  }
  const element = samples.get(state).cloneNode(true);
  const reason = stream.reasons[at];
  const title = `${stream.name}, ${when(hour)}: ${STATES_OF_ROWS[state]?.[0] ?? "nothing"}`;
  if (at && hour.endsWith("T00:00:00Z")) element.classList.add("midnight");
  element.setAttribute("href", link + encodeURIComponent(hour));
  element.setAttribute("data-key", `${stream.name} ${hour}`);
  element.setAttribute("aria-label", reason ? `${title}, ${reason}` : title);
  return element;
}

/** Like "26 Nov, 12:00–13:00 UTC". All rows have the same hours, and formatting a date takes long. */
function when(hour) {
  if (!hourTexts.has(hour)) {
    if (hourTexts.size > MAX_TEXTS) hourTexts.clear();
    hourTexts.set(hour, `${dayOnly(hour)}, ${span(hour)}`);
  }
  return hourTexts.get(hour);
}

const MAX_TEXTS = 1000;
const hourTexts = new Map();

function tipOf(link) {
  const { stream } = rows.get(link.closest(".row").dataset.stream);
  const at = [...link.parentElement.children].indexOf(link);
  const state = stream.states[at];
  return [
    el("strong", {}, `${stream.name}, ${when(shown.view.hours[at])}`),
    STATES_OF_ROWS[state] ? chip(state) : "",
    stream.reasons[at] ? el("p", {}, stream.reasons[at]) : "",
  ];
}

/** Move the focus within the grid, which is a single tab stop. */
function moveFocus(event) {
  const present = event.target.closest("a");
  if (!present) return;
  const lines = [...shown.list.querySelectorAll(".row:not(.head)")];
  const linksOf = (line) => {
    fillSquares(line.dataset.stream);
    return [...line.querySelectorAll("a")];
  };
  const line = lines.indexOf(present.closest(".row"));
  const links = linksOf(lines[line]);
  const at = links.indexOf(present);
  const ends = event.ctrlKey ? [lines[0], lines.at(-1)] : [lines[line], lines[line]];
  const to = {
    ArrowLeft: () => links[at - 1],
    ArrowRight: () => links[at + 1],
    ArrowUp: () => line && linksOf(lines[line - 1])[at],
    ArrowDown: () => lines[line + 1] && linksOf(lines[line + 1])[at],
    Home: () => linksOf(ends[0])[0],
    End: () => linksOf(ends[1]).at(-1),
  }[event.key]?.();
  if (!to) return;
  event.preventDefault();
  for (const other of shown.list.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}
