// Shows the view that the address asks for: all streams, the calendar of one, or one hour. Airflow copies the frame's
// address into its own.

import { AnswerError, ask, askOverview } from "./airflow.js";
import { showCalendar } from "./calendar.js";
import { el, glyph } from "./dom.js";
import { showHour } from "./hour.js";
import { showOverview } from "./overview.js";

const page = document.getElementById("page");
const asked = new URLSearchParams(location.search);
const PENDING_MS = 1000;
// The answer about all streams takes longer.
const OVERVIEW_PENDING_MS = 2000;
const RUNNING_MS = 5000;
const IDLE_MS = 30_000;

let timer = 0;
let showing = 0;

/** Show the view again; `refresh` also reads the bucket again. */
async function show(refresh = false) {
  clearTimeout(timer);
  const current = ++showing;
  page.setAttribute("aria-busy", "true");
  let next = IDLE_MS;
  try {
    const { streams } = await ask("");
    const stream = streams.find((one) => one.name === (asked.get("stream") ?? streams[0]?.name));
    const isOverview = asked.get("view") === "streams" || (!asked.has("stream") && streams.length > 1);
    page.classList.toggle("wide", isOverview);
    if (streams.length && isOverview) {
      const view = await askOverview(refresh);
      if (current !== showing) return;
      showOverview(view, page, () => show(true));
      next = view.bucket.pending ? OVERVIEW_PENDING_MS : IDLE_MS;
    } else if (!streams.length) {
      page.replaceChildren(notice("There is no stream whose Dag you may read."));
    } else if (!stream) {
      page.replaceChildren(notice(`There is no stream ${asked.get("stream")} that you may read.`, true));
    } else {
      const view = asked.get("hour") ? hourOf(stream) : monthOf(stream, refresh);
      const { draw, soon, running } = await view;
      if (current !== showing) return;
      draw(page, streams, () => show(true));
      next = soon ? PENDING_MS : running ? RUNNING_MS : IDLE_MS;
    }
  } catch (error) {
    if (current !== showing) return;
    if (!(error instanceof AnswerError)) throw error;
    failed(error);
    next = error.retryMs ?? next;
  } finally {
    if (current === showing) {
      page.setAttribute("aria-busy", "false");
      timer = setTimeout(() => (document.hidden ? null : show()), next);
    }
  }
}

async function monthOf(stream, refresh) {
  const month = asked.get("month") ?? new Date().toISOString().slice(0, 7);
  const answer = await ask(`/${encodeURIComponent(stream.name)}/hours`, { month, refresh });
  const running = answer.hours.some(({ state }) => state === "running" || state === "late");
  return {
    draw: (...where) => showCalendar(answer, ...where),
    soon: answer.bucket.pending > 0,
    running,
  };
}

async function hourOf(stream) {
  const answer = await ask(
    `/${encodeURIComponent(stream.name)}/hours/${encodeURIComponent(asked.get("hour"))}`,
  );
  const running = answer.runs.some(({ state }) => state === "running" || state === "queued");
  return { draw: (...where) => showHour(answer, ...where), soon: false, running };
}

/** Show an error above the present view. */
function failed(error) {
  page.querySelector(".notice.fresh")?.remove();
  const box = notice(error.message, page.children.length === 0);
  box.classList.add("fresh");
  page.prepend(box);
}

function notice(text, back = false) {
  return el(
    "div",
    { class: "notice bad", role: "alert" },
    glyph("failed"),
    el("p", {}, text),
    el("button", { type: "button", click: () => show() }, "Try again"),
    back ? el("a", { class: "button", href: "./" }, "To the calendar") : null,
  );
}

document.addEventListener("visibilitychange", () => (document.hidden ? null : show()));
show();
