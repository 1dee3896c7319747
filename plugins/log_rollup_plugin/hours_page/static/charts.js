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
  const shown = hours.filter(({ marker }) => marker?.objects);
  if (!shown.length) return null;
  const first = Date.parse(shown[0].hour);
  const slots = Math.max(MIN_SLOTS, (Date.parse(shown.at(-1).hour) - first) / HOUR_MS + 1);
  return el(
    "section",
    { class: "charts", "aria-label": "The complete hours over time" },
    MEASURES.map((measure) => chart(measure, shown, first, slots, address)),
  );
}

function chart([title, value, format, formatAxis, limit], shown, first, slots, address) {
  const values = shown.map(({ marker }) => value(marker));
  const limits = limit ? shown.map(({ marker }) => limit(marker)) : [];
  const top = Math.max(...values, ...limits) || 1;
  const slot = (one) => (Date.parse(one.hour) - first) / HOUR_MS;
  const bars = shown.map((one, index) => {
    const height = (values[index] / top) * HEIGHT;
    return svg("rect", { x: slot(one) + 0.1, y: HEIGHT - height, width: 0.8, height });
  });
  const steps = limits.map((most, index) => {
    const joins = index && slot(shown[index]) === slot(shown[index - 1]) + 1;
    return `${joins ? "L" : "M"}${slot(shown[index])} ${HEIGHT - (most / top) * HEIGHT}h1`;
  });
  const middle = [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)];
  const output = el("output", {}, medianText(middle, format));
  const picture = svg(
    "svg",
    {
      viewBox: `0 0 ${slots} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `${title} of ${number(shown.length)} hours: median ${format(middle)}, maximum ${format(Math.max(...values))}`,
    },
    bars,
    steps.length ? svg("path", { class: "limit", d: steps.join("") }) : null,
  );
  const nearest = (event) => {
    const box = picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * slots - 0.5;
    return shown.reduce((best, one, index) => (Math.abs(slot(one) - at) < Math.abs(slot(shown[best]) - at) ? index : best), 0);
  };
  const leave = () => {
    output.textContent = medianText(middle, format);
    for (const bar of bars) bar.classList.remove("at");
  };
  picture.addEventListener("pointermove", (event) => {
    const index = nearest(event);
    bars.forEach((bar, other) => bar.classList.toggle("at", other === index));
    const most = limit ? ` of ${format(limits[index])}` : "";
    output.textContent = `${dayOnly(shown[index].hour)} ${span(shown[index].hour)}: ${format(values[index])}${most}`;
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("click", (event) => location.assign(address(shown[nearest(event)].hour)));
  const end = new Date(first + (slots - 1) * HOUR_MS);
  return el(
    "figure",
    { class: "card chart" },
    el("figcaption", {}, el("h3", {}, title), output),
    el("div", { class: "plot" }, el("span", { class: "top" }, formatAxis(top)), picture),
    el("div", { class: "axis", "aria-hidden": "true" }, el("span", {}, stamp(first)), el("span", {}, stamp(end))),
  );
}

const medianText = (middle, format) => `median ${format(middle)}`;
const stamp = (value) => `${dayOnly(value)}, ${clock(value)}`;
