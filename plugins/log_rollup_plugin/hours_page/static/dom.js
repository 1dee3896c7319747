// Creates elements, and formats numbers and times.

const SVG = "http://www.w3.org/2000/svg";

/** Create an HTML element. Attributes that are null, undefined or false are left out; functions become listeners. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Create an SVG element. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** One of the drawings in index.html; hidden from screen readers. */
export function glyph(name) {
  return svg("svg", { class: "glyph", "aria-hidden": "true" }, svg("use", { href: `#glyph-${name}` }));
}

const HOUR_MS = 3_600_000;
const count = new Intl.NumberFormat("en-US");
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const utc = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options });
const longDay = utc({ weekday: "short", day: "numeric", month: "short", year: "numeric" });
const shortDay = utc({ day: "numeric", month: "short" });
const monthName = utc({ month: "long", year: "numeric" });

export const number = (value) => count.format(value);

/** A number with a noun, like "1 part" or "2 parts". */
export const counted = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

export function size(bytes) {
  const step = bytes < 1024 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** step;
  return `${step === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[step]}`;
}

/** A size, and the number of bytes. */
export const exact = (bytes) => `${size(bytes)} (${number(bytes)})`;

/** How many times smaller stored bytes are than the bytes they hold, like 9.6x; a dash if nothing is stored. */
export const ratio = (content, stored) => (stored ? `${(content / stored).toFixed(1)}x` : "–");

/** The bytes that compression saves, with their share; it may cost some. */
export function saved(content, stored) {
  const bytes = content - stored;
  if (bytes < 0) return `none, ${size(-bytes)} more`;
  return content ? `${size(bytes)}, ${((100 * bytes) / content).toFixed(1)} %` : size(0);
}

/** A share like 87 %; with a digit below 10 %. */
export function share(part, whole) {
  const percent = (100 * part) / whole;
  return `${Math.abs(percent) < 10 && part ? percent.toFixed(1) : Math.round(percent)} %`;
}

/** A short number for an axis. */
export function brief(value) {
  if (value >= 1e6) return `${trim(value / 1e6)}M`;
  if (value >= 1e4) return `${trim(value / 1e3)}k`;
  return value >= 100 ? number(Math.round(value)) : trim(value);
}

const trim = (value) => String(Number(value.toPrecision(3)));

const cents = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** An amount, rounded to a cent; a smaller one is shown as such. */
export const money = (amount, currency) => `${amount > 0 && amount < 0.005 ? "<0.01" : cents.format(amount)} ${currency}`;

export function seconds(value) {
  if (value < 1) return `${value.toFixed(2)} s`;
  if (value < 10) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return both(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86_400) return both(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
  return both(Math.floor(whole / 86_400), "d", Math.floor((whole % 86_400) / 3600), "h");
}

const both = (many, unit, few, smaller) => (few ? `${many} ${unit} ${few} ${smaller}` : `${many} ${unit}`);

const two = (value) => String(value).padStart(2, "0");

/** The name of an hour, like 2026-11-23T08:00:00Z. */
export const hourName = (date) => date.toISOString().replace(/\.\d+Z$/, "Z");
export const addHours = (name, hours) => hourName(new Date(Date.parse(name) + hours * HOUR_MS));
export const day = (value) => longDay.format(new Date(value)).replace(",", "");
export const dayOnly = (value) => shortDay.format(new Date(value));
export const monthTitle = (month) => monthName.format(new Date(`${month}-01T00:00:00Z`));
export const clock = (value) => {
  const date = new Date(value);
  return `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
};
export const span = (name) => `${clock(name)}–${clock(addHours(name, 1))} UTC`;
export const instant = (value) => `${day(value)}, ${clock(value)}:${two(new Date(value).getUTCSeconds())} UTC`;
