// Small SVG charts of the complete hours of a month, with one bar per hour.

import { brief, clock, dayOnly, el, number, seconds, size, span, svg } from "./dom.js";

const HOUR_MS = 3_600_000;
const HEIGHT = 100;
const MIN_SLOTS = 24;
const MEGA = 1e6;

/** The charts: title, value, format of values, format of the axis, and perhaps a limit. */
const MEASURES = [
  ["Objects", (marker) => marker.objects, number, brief],
  ["Bytes", (marker) => marker.bytes_in, size, size],
  ["Parts", (marker) => marker.parts, number, brief],
  ["Packing time of all tasks", (marker) => marker.pack_seconds, seconds, seconds],
  ["Throughput per task", throughput, (value) => `${brief(value)} MB/s`, (value) => `${brief(value)} MB/s`],
  ["Peak sockets and their cap", (marker) => marker.sockets, number, brief, (marker) => marker.max_connections],
];

function throughput(marker) {
  return marker.pack_seconds ? marker.bytes_in / MEGA / marker.pack_seconds : 0;
}

/** The charts; `address` returns the URL of an hour. */
export function charts(hours, address) {
  const drawn = hours.filter(({ marker }) => marker?.objects);
  if (!drawn.length) return null;
  const first = Date.parse(drawn[0].hour);
  const slots = Math.max(MIN_SLOTS, (Date.parse(drawn.at(-1).hour) - first) / HOUR_MS + 1);
  return el(
    "section",
    { class: "charts", "aria-label": "The complete hours over time" },
    MEASURES.map((measure) => chart(measure, drawn, first, slots, address)),
  );
}

function chart([title, value, say, mark, limit], drawn, first, slots, address) {
  const values = drawn.map(({ marker }) => value(marker));
  const limits = limit ? drawn.map(({ marker }) => limit(marker)) : [];
  const top = Math.max(...values, ...limits) || 1;
  const slot = (one) => (Date.parse(one.hour) - first) / HOUR_MS;
  const bars = drawn.map((one, index) => {
    const height = (values[index] / top) * HEIGHT;
    return svg("rect", { x: slot(one) + 0.1, y: HEIGHT - height, width: 0.8, height });
  });
  const steps = limits.map((most, index) => {
    const joins = index && slot(drawn[index]) === slot(drawn[index - 1]) + 1;
    return `${joins ? "L" : "M"}${slot(drawn[index])} ${HEIGHT - (most / top) * HEIGHT}h1`;
  });
  const middle = [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)];
  const said = el("output", {}, usual(middle, say));
  const picture = svg(
    "svg",
    {
      viewBox: `0 0 ${slots} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `${title} of ${number(drawn.length)} hours: median ${say(middle)}, most ${say(Math.max(...values))}`,
    },
    bars,
    steps.length ? svg("path", { class: "limit", d: steps.join("") }) : null,
  );
  const nearest = (event) => {
    const box = picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * slots - 0.5;
    return drawn.reduce((best, one, index) => (Math.abs(slot(one) - at) < Math.abs(slot(drawn[best]) - at) ? index : best), 0);
  };
  const leave = () => {
    said.textContent = usual(middle, say);
    for (const bar of bars) bar.classList.remove("at");
  };
  picture.addEventListener("pointermove", (event) => {
    const index = nearest(event);
    bars.forEach((bar, other) => bar.classList.toggle("at", other === index));
    const most = limit ? ` of ${say(limits[index])}` : "";
    said.textContent = `${dayOnly(drawn[index].hour)} ${span(drawn[index].hour)}: ${say(values[index])}${most}`;
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("click", (event) => location.assign(address(drawn[nearest(event)].hour)));
  const end = new Date(first + (slots - 1) * HOUR_MS);
  return el(
    "figure",
    { class: "card chart" },
    el("figcaption", {}, el("h3", {}, title), said),
    el("div", { class: "plot" }, el("span", { class: "top" }, mark(top)), picture),
    el("div", { class: "axis", "aria-hidden": "true" }, el("span", {}, stamp(first)), el("span", {}, stamp(end))),
  );
}

const usual = (middle, say) => `median ${say(middle)}`;
const stamp = (value) => `${dayOnly(value)}, ${clock(value)}`;
