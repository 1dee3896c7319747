// The head of the views: the stream, the age of the data, and warnings.

import { dagPage, leave } from "./airflow.js";
import { el, glyph, seconds } from "./dom.js";

/** The states in the order of the legend: name and meaning. */
export const STATES = {
  complete: ["Complete", "_SUCCESS exists beside its parts: the hour is complete and proven"],
  running: ["Running", "its run is running"],
  waiting: ["Waiting", "its raw objects are not settled yet, or its run is queued"],
  late: ["Late", "it should be complete by now, but its run has not ended"],
  failed: ["Failed", "its run failed"],
  damaged: ["Damaged", "its _SUCCESS cannot be read, so it does not count as complete"],
  missing: ["Missing", "it has ended, and has neither a completion marker nor an unfinished run"],
  unknown: ["Not read", "the bucket has not been read yet, or could not be read"],
  open: ["Open", "it has not ended, or ended a few minutes ago"],
};

/** The states in the rows of all streams. */
export const STATES_OF_ROWS = {
  complete: STATES.complete,
  empty: ["Empty", "the hour is complete, and has no raw objects"],
  ...STATES,
};

/** The state of an hour: sign and name. */
export function chip(state) {
  return el("span", { class: "chip", "data-state": state }, glyph(state), STATES_OF_ROWS[state]?.[0] ?? "None");
}

/** A URL of this page. */
export const address = (parameters) => `./?${new URLSearchParams(parameters)}`;

/** A link to one of Airflow's pages, or to another site in a new tab. */
export function away(href, text, classes = "", outside = false) {
  const target = outside ? { target: "_blank", rel: "noreferrer" } : {};
  return el("a", { href, class: classes, click: leave, ...target }, text, glyph("away"));
}

/** A menu of the streams; it keeps the month. */
export function streamChoice(streams, present, month) {
  const change = (event) => location.assign(address({ stream: event.target.value, month }));
  const options = streams.map(({ name }) => el("option", { value: name, selected: name === present }, name));
  return el(
    "label",
    { class: "choice" },
    el("span", {}, "Stream"),
    el("select", { change, "data-key": "stream" }, options),
  );
}

/** The age of the data from the bucket, and a button to read it again. */
export function age(bucket, now, refresh) {
  const since = (instant) => Math.round((Date.parse(now) - Date.parse(instant)) / 1000);
  const ago = (instant) => (since(instant) < 2 ? "just now" : `${seconds(since(instant))} ago`);
  let text = "Bucket not read yet";
  if (bucket.pending) text = `Reading ${bucket.pending} hours from the bucket …`;
  else if (bucket.newest) {
    text = `Bucket read ${ago(bucket.newest)}`;
    if (Date.parse(bucket.newest) - Date.parse(bucket.oldest) > 60_000) {
      text += `, older hours up to ${ago(bucket.oldest)}`;
    }
  }
  return el(
    "div",
    { class: "age" },
    el("span", { role: "status" }, text),
    el(
      "button",
      { type: "button", click: refresh, "data-key": "refresh", title: "Read the bucket again now" },
      glyph("refresh"),
      "Refresh",
    ),
  );
}

/** Warnings at the top: a bucket that cannot be read, or a Dag without new runs. */
export function warnings(stream, error) {
  const bucket = el(
    "div",
    { class: "notice bad", role: "alert" },
    glyph("failed"),
    el("p", {}, el("strong", {}, "The bucket could not be read. "), `Runs are shown from Airflow's database. ${error}`),
  );
  const pause =
    stream.paused === null
      ? "Airflow does not know this stream's Dag yet, so it creates no runs."
      : "This stream's Dag is paused, so Airflow creates no runs.";
  const paused = el(
    "div",
    { class: "notice", role: "status" },
    glyph("waiting"),
    el("p", {}, pause),
    away(dagPage(stream.dag_id), "Open the Dag", "button"),
  );
  return [error ? bucket : null, stream.paused === false ? null : paused].filter(Boolean);
}

/** Replace the view, keeping the keyboard focus and where tables are scrolled to. */
export function replace(page, ...children) {
  if (document.querySelector("dialog[open]")) return;
  const key = document.activeElement?.dataset?.key;
  const scrolled = [...page.querySelectorAll(".scroll")].map((box) => [box.ariaLabel, box.scrollLeft, box.scrollTop]);
  page.replaceChildren(...children.flat().filter(Boolean));
  for (const [label, left, top] of scrolled) {
    page.querySelector(`.scroll[aria-label="${CSS.escape(label)}"]`)?.scrollTo(left, top);
  }
  if (key) page.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}
