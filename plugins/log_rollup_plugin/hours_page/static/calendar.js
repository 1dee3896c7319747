// A month of hours: a calendar with days as rows and hours as columns, and charts.

import { addHours, clock, counted, dayOnly, el, glyph, money, monthTitle, number, ratio, saved, seconds, size, span } from "./dom.js";
import { charts } from "./charts.js";
import { STATES, address, age, chip, replace, streamChoice, warnings } from "./header.js";
import { withTip } from "./tip.js";

const MAX_LISTED = 6;
const NEEDS_ATTENTION = ["failed", "damaged", "missing", "late"];
// States that the legend shows only if there are such hours.
const RARE_STATES = ["unknown", "damaged"];
const WEEKDAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

/** Show a month. */
export function showCalendar(month, page, streams, refresh) {
  const { stream, hours } = month;
  document.title = `Hours of ${stream.name}, ${monthTitle(month.month)}`;
  const tip = el("div", { class: "tip", role: "presentation", hidden: true });
  replace(
    page,
    el(
      "header",
      { class: "bar" },
      el("h1", {}, "Hours"),
      el("a", { class: "button", href: address({ view: "streams" }), "data-key": "all streams" }, "All streams"),
      streamChoice(streams, stream.name, month.month),
      monthChoice(stream.name, month.month, month.now.slice(0, 7)),
      age(month.bucket, month.now, refresh),
    ),
    warnings(stream, month.bucket.error),
    el(
      "section",
      { class: "card", "aria-label": "Calendar" },
      legend(hours),
      grid(month, tip),
      tip,
    ),
    attention(stream.name, hours),
    totals(month),
    costs(month),
    charts(hours, (hour) => address({ stream: stream.name, hour })),
    el(
      "p",
      { class: "foot" },
      `All times are UTC. An hour is late if it is not complete ${seconds(stream.late_after)} after its end. `,
      "For runs by hand or by a backfill, the time counts from when the run was queued.",
    ),
  );
}

function monthChoice(stream, month, present) {
  const moved = (months) => {
    const first = new Date(`${month}-01T00:00:00Z`);
    first.setUTCMonth(first.getUTCMonth() + months);
    return address({ stream, month: first.toISOString().slice(0, 7) });
  };
  const step = (months, name, sign) =>
    el("a", { class: "button square", href: moved(months), "aria-label": name, title: name, "data-key": name }, glyph(sign));
  return el(
    "nav",
    { class: "months", "aria-label": "Month" },
    step(-1, "Previous month", "back"),
    el("h2", {}, monthTitle(month)),
    step(1, "Next month", "forward"),
    month === present ? null : el("a", { class: "button", href: address({ stream }) }, "This month"),
  );
}

/** Whether raw objects came late, changed or vanished since the hour was last completed. */
const isBehind = ({ late, marker }) => Boolean(late && marker && Date.parse(marker.completed_at) < Date.parse(late.at));

function legend(hours) {
  const counts = grouped(hours);
  const behind = hours.filter(isBehind).length;
  const expired = hours.filter((one) => one.expired).length;
  const mark = (name, text, count, title) => (count ? el("li", { title }, el("span", { class: "sample", "data-state": "complete", [name]: "" }), text, el("b", {}, number(count))) : null);
  const shown = Object.keys(STATES).filter((state) => !RARE_STATES.includes(state) || counts.has(state));
  return el(
    "ul",
    { class: "legend", "aria-label": "Legend, with the number of hours in each state" },
    shown.map((state) =>
      el(
        "li",
        { title: STATES[state][1] },
        el("span", { class: "sample", "data-state": state }, glyph(state)),
        `${STATES[state][0]} `,
        el("b", {}, number(counts.get(state)?.length ?? 0)),
      ),
    ),
    mark("data-late", "Late objects ", behind, "log_rollup_late found raw objects that differ from the packed ones"),
    mark("data-expired", "Raw expired ", expired, "raw objects of these hours were deleted, because proven parts hold them"),
  );
}

function grouped(hours) {
  const groups = new Map();
  for (const hour of hours) groups.set(hour.state, [...(groups.get(hour.state) ?? []), hour]);
  return groups;
}

function grid(month, tip) {
  const days = [];
  for (let first = 0; first < month.hours.length; first += 24) days.push(month.hours.slice(first, first + 24));
  const heads = Array.from({ length: 24 }, (_, hour) =>
    el("th", { scope: "col", class: hour % 3 ? "minor" : null }, String(hour).padStart(2, "0")),
  );
  const present = month.hours.filter(({ hour }) => hour <= month.now).at(-1) ?? month.hours[0];
  const table = el(
    "table",
    { class: "calendar", role: "grid", "aria-label": `Hours of ${month.stream.name}, ${monthTitle(month.month)}` },
    el("thead", {}, el("tr", {}, el("td", {}), heads)),
    el(
      "tbody",
      {},
      days.map((hours) => row(month, hours, present)),
    ),
  );
  table.addEventListener("keydown", moveFocus);
  withTip(table, tip, (link) => tipOf(link, month));
  return table;
}

function row(month, hours, present) {
  const date = new Date(hours[0].hour);
  const weekday = date.getUTCDay();
  const today = hours[0].hour.slice(0, 10) === month.now.slice(0, 10);
  const classes = [weekday % 6 === 0 ? "weekend" : "", today ? "today" : ""].join(" ").trim();
  return el(
    "tr",
    { class: classes || null },
    el("th", { scope: "row" }, el("span", { class: "weekday" }, WEEKDAYS[weekday]), String(date.getUTCDate())),
    hours.map((one) => el("td", { role: "gridcell" }, cell(month.stream.name, one, one === present))),
  );
}

function cell(stream, one, present) {
  return el(
    "a",
    {
      href: address({ stream, hour: one.hour }),
      class: "hour",
      "data-state": one.state,
      "data-key": one.hour,
      "data-late": isBehind(one),
      "data-expired": Boolean(one.expired),
      tabindex: present ? 0 : -1,
      "aria-label": [title(one), ...facts(one)].join(", "),
    },
    glyph(one.state),
  );
}

const title = (one) => `${dayOnly(one.hour)} ${span(one.hour)}: ${STATES[one.state]?.[0] ?? "nothing"}`;

/** What is known of an hour besides its state. */
function facts(one) {
  const texts = one.why ? [one.why] : [];
  const { marker, late } = one;
  const behind = isBehind(one);
  if (marker) {
    const groups = marker.groups === null || marker.groups === undefined ? "" : ` of ${number(marker.groups)} groups`;
    texts.push(`${counted(marker.objects, "object")}, ${size(marker.bytes_in)} in ${counted(marker.parts, "part")}${groups}`);
  }
  if (marker?.bytes_stored) {
    texts.push(`${size(marker.bytes_stored)} stored, ratio ${ratio(marker.bytes_in, marker.bytes_stored)}`);
  }
  if (behind) texts.push(`since then raw objects ${differences(late)}`);
  return texts;
}

/** Like "came late (3) and vanished (1)". */
function differences({ late, changed, vanished }) {
  const kinds = [["came late", late], ["changed", changed], ["vanished", vanished]];
  return kinds.filter(([, count]) => count).map(([what, count]) => `${what} (${number(count)})`).join(" and ");
}

/** Move the focus with the arrow keys, Home and End. */
function moveFocus(event) {
  const cells = [...event.currentTarget.querySelectorAll("a.hour")];
  const at = cells.indexOf(event.target);
  if (at < 0) return;
  const row = at - (at % 24);
  const to = {
    ArrowLeft: at - 1,
    ArrowRight: at + 1,
    ArrowUp: at - 24,
    ArrowDown: at + 24,
    Home: event.ctrlKey ? 0 : row,
    End: event.ctrlKey ? cells.length - 1 : row + 23,
  }[event.key];
  if (to === undefined || !cells[to]) return;
  event.preventDefault();
  cells[at].tabIndex = -1;
  cells[to].tabIndex = 0;
  cells[to].focus();
}

/** What is known of an hour, for its tooltip. */
function tipOf(link, month) {
  const one = month.hours.find(({ hour }) => hour === link.dataset.key);
  return [
    el("strong", {}, `${dayOnly(one.hour)}, ${span(one.hour)}`),
    STATES[one.state] ? chip(one.state) : "",
    ...facts(one).map((fact) => el("p", {}, fact)),
  ];
}

/** The totals of the complete hours; of what compression saves only if any hour is compressed. */
function totals({ totals: { hours, compressed, objects, bytes_in: bytes, bytes_stored: stored }, bucket }) {
  if (!hours) return null;
  const fact = (name, value, title) => el("div", { title }, el("dt", {}, name), el("dd", {}, value));
  const some = compressed && compressed < hours ? `${number(compressed)} of these hours ${compressed === 1 ? "has" : "have"} compressed parts.` : null;
  return el(
    "section",
    { class: "card" },
    el("h3", {}, "Complete hours of the month"),
    el(
      "dl",
      { class: "totals" },
      fact("Hours", number(hours)),
      fact("Raw objects", number(objects)),
      fact("Bytes in", size(bytes), `${number(bytes)} bytes`),
      fact("Bytes stored", size(stored), `${number(stored)} bytes`),
      compressed ? fact("Ratio", ratio(bytes, stored)) : null,
      compressed ? fact("Saved", saved(bytes, stored)) : null,
    ),
    bucket.pending ? el("p", { class: "quiet" }, `${number(bucket.pending)} more hours are being read.`) : null,
    some ? el("p", { class: "quiet" }, some) : null,
  );
}

/** What the stream costs a month, and what the rollup saves, by the complete hours of the month. */
function costs({ stream, cost }) {
  if (!cost) return null;
  const title = el("h3", {}, "Cost of S3 a month");
  if (!cost.figures) return el("section", { class: "card" }, title, el("p", { class: "quiet" }, `Not known: ${cost.problem}`));
  const { currency, raw, parts, requests, total, without, hours, first, last, raw_days: days, region, as_of: date } = cost.figures;
  const fact = (name, value, about) => el("div", { title: about }, el("dt", {}, name), el("dd", {}, value));
  const difference = without - total;
  const saved = difference < 0 ? `none, ${money(-difference, currency)} more` : `${money(difference, currency)}, ${((100 * difference) / without || 0).toFixed(0)} %`;
  const kept = days === null ? "Raw objects are counted as kept for ever, because the stream has no expire_raw that deletes them" : `Raw objects are kept for ${counted(days, "day")}`;
  return el(
    "section",
    { class: "card" },
    title,
    el(
      "dl",
      { class: "totals" },
      fact("Now", money(total, currency), "all hours since the start of the stream"),
      fact("Raw objects", money(raw, currency)),
      fact("Parts", money(parts, currency)),
      fact("Requests", money(requests, currency), "PUTs of the producers, and all requests of the rollup"),
      fact("Without the rollup", money(without, currency), "all raw objects in STANDARD"),
      fact("Saved", saved),
    ),
    el(
      "p",
      { class: "quiet" },
      `Measured from ${number(hours)} complete ${hours === 1 ? "hour" : "hours"}, ${dayOnly(first)} ${clock(first)} to ${dayOnly(last)} ${clock(addHours(last, 1))}, `,
      `with list prices of ${region} as of ${date}. ${kept}. For other cases: `,
      el("code", {}, `log-rollup cost ${stream.name}`),
    ),
  );
}

/** The hours that need attention, newest first. */
function attention(stream, hours) {
  const found = hours.filter((one) => NEEDS_ATTENTION.includes(one.state) || isBehind(one)).reverse();
  if (!found.length) return null;
  const rest = found.length - MAX_LISTED;
  return el(
    "section",
    { class: "card attention" },
    el("h3", {}, "Needs attention"),
    el(
      "ul",
      {},
      found.slice(0, MAX_LISTED).map((one) =>
        el(
          "li",
          {},
          chip(one.state),
          el("a", { href: address({ stream, hour: one.hour }), "data-key": `look ${one.hour}` }, `${dayOnly(one.hour)}, ${clock(one.hour)}`),
          el("span", {}, facts(one).join("; ")),
        ),
      ),
    ),
    rest > 0 ? el("p", {}, `… and ${number(rest)} more`) : null,
  );
}
