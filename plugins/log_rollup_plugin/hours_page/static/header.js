// The head of both views: which stream, how old what is shown is, and what could not be had.

import { dagPage, leave } from "./airflow.js";
import { el, glyph, seconds } from "./dom.js";

/** The states in the order of the legend, and what they mean. */
export const STATES = {
  complete: ["Complete", "_SUCCESS lies beside its parts: all of it is there and proven"],
  running: ["Running", "its run is at work"],
  waiting: ["Waiting", "until its raw objects are settled, or its run is queued"],
  late: ["Late", "it should be complete by now; its run is not done"],
  failed: ["Failed", "its run failed"],
  damaged: ["Damaged", "there is a _SUCCESS that cannot be read, so it does not count as complete"],
  missing: ["Missing", "it is over, and has neither a completion marker nor a run at work"],
  unknown: ["Not read", "the bucket has not been read, or could not be"],
  open: ["Open", "it is not over yet"],
};

/** The state of an hour as a word with its sign. */
export function chip(state) {
  return el("span", { class: "chip", "data-state": state }, glyph(state), STATES[state]?.[0] ?? "None");
}

/** An address of this page. */
export const address = (parameters) => `./?${new URLSearchParams(parameters)}`;

/** A link to one of Airflow's pages, or to another site in a new tab. */
export function away(href, text, classes = "", outside = false) {
  const target = outside ? { target: "_blank", rel: "noreferrer" } : {};
  return el("a", { href, class: classes, click: leave, ...target }, text, glyph("away"));
}

/** Chooses among the streams, keeping the month. */
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

/** How old what the bucket said is, and the button that reads it again. */
export function age(bucket, now, refresh) {
  const since = (instant) => Math.round((Date.parse(now) - Date.parse(instant)) / 1000);
  const ago = (instant) => (since(instant) < 2 ? "just now" : `${seconds(since(instant))} ago`);
  let text = "Bucket not read yet";
  if (bucket.pending) text = `Reading ${bucket.pending} hours from the bucket …`;
  else if (bucket.newest) {
    text = `Bucket read ${ago(bucket.newest)}`;
    if (Date.parse(bucket.newest) - Date.parse(bucket.oldest) > 60_000) {
      text += `, the settled past up to ${ago(bucket.oldest)}`;
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

/** What stands above the rest: a bucket that cannot be read, a Dag that makes no runs. */
export function warnings(stream, error) {
  const bucket = el(
    "div",
    { class: "notice bad", role: "alert" },
    glyph("failed"),
    el("p", {}, el("strong", {}, "The bucket could not be read. "), `Runs are shown as Airflow knows them. ${error}`),
  );
  const pause =
    stream.paused === null
      ? "Airflow does not know this stream's Dag yet: no runs are made."
      : "This stream's Dag is paused: no runs are made.";
  const paused = el(
    "div",
    { class: "notice", role: "status" },
    glyph("waiting"),
    el("p", {}, pause),
    away(dagPage(stream.dag_id), "Open the Dag", "button"),
  );
  return [error ? bucket : null, stream.paused === false ? null : paused].filter(Boolean);
}

/** Put a view in place of the one before it, keeping what the keyboard was at. */
export function replace(page, ...children) {
  if (document.querySelector("dialog[open]")) return;
  const key = document.activeElement?.dataset?.key;
  page.replaceChildren(...children.flat().filter(Boolean));
  if (key) page.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}
