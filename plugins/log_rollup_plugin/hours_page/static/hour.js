// One hour: its totals, how it was proven, its parts and runs, and what to do.

import { clearRun, leave, runPage, taskPage } from "./airflow.js";
import { addHours, clock, counted, day, dayOnly, el, exact, glyph, instant, number, ratio, saved, seconds, size, span } from "./dom.js";
import { card, consoleLink, copyButton, fillBar, list, table } from "./cards.js";
import { frames } from "./frames.js";
import { groups } from "./groups.js";
import { address, away, chip, replace, warnings } from "./header.js";

const PROOFS = {
  "stored-crc64nvme": "S3 keeps the part's CRC, and refuses a wrong one",
  "read-back": "the part was read back and its CRC computed",
  crc64nvme: "the bytes match the CRC that S3 keeps of the raw object",
  crc32c: "the bytes match the CRC that S3 keeps of the raw object",
  crc32: "the bytes match the CRC that S3 keeps of the raw object",
  "etag-md5": "the bytes in the part match the ETag of the raw object",
  length: "only the length was compared",
};
const STEPS = ["wait_for_raw_hour", "plan_hour", "pack_shard", "validate_hour", "complete_hour"];

/** Show one hour. */
export function showHour(answer, page, _streams, refresh) {
  const { stream, hour } = answer;
  document.title = `${stream.name}, ${dayOnly(hour)} ${span(hour)}`;
  replace(
    page,
    head(answer, refresh),
    warnings(stream, answer.error),
    el("div", { class: "columns" }, el("div", {}, facts(answer)), el("div", {}, runs(answer), late(answer), proof(answer), places(answer))),
    groups(answer),
    shards(answer),
    parts(answer),
  );
}

function head(answer, refresh) {
  const { stream, hour, runs: hourRuns } = answer;
  const step = (hours, name, sign) =>
    el("a", { class: "button square", href: address({ stream: stream.name, hour: addHours(hour, hours) }), "aria-label": name, title: name, "data-key": name }, glyph(sign));
  const run = hourRuns[0];
  return el(
    "header",
    { class: "hour-head" },
    el(
      "nav",
      { class: "crumbs", "aria-label": "Breadcrumbs" },
      el("a", { href: address({ stream: stream.name, month: hour.slice(0, 7) }), "data-key": "calendar" }, glyph("back"), `Hours of ${stream.name}`),
    ),
    el(
      "div",
      { class: "bar" },
      el("div", { class: "months" }, step(-1, "Previous hour", "back"), step(1, "Next hour", "forward")),
      el("h1", {}, `${day(hour)}, ${span(hour)}`),
      chip(answer.state),
      el("span", { class: "why" }, answer.why),
      el(
        "div",
        { class: "actions" },
        run ? away(runPage(stream.dag_id, run.run_id), "Open the run", "button") : null,
        run && answer.may_clear
          ? el("button", { type: "button", "data-key": "clear", click: () => askToClear(stream, hour, run, refresh) }, "Clear the run …")
          : null,
        el("button", { type: "button", click: refresh, "data-key": "refresh" }, glyph("refresh"), "Refresh"),
      ),
    ),
  );
}

function facts(answer) {
  const { hour, marker, planned } = answer;
  const packed = Math.max(answer.parts_found, answer.parts.length);
  if (!marker) {
    if (!planned || answer.state === "failed") return whatToDo(answer);
    return card(
      "Being built",
      list([
        ["Planned", `${counted(planned.objects, "object")}, ${size(planned.bytes)}`],
        ["Parts packed", `${number(packed)} of ${number(planned.parts)}`],
      ]),
      fillBar(packed / (planned.parts || 1)),
    );
  }
  if (!("objects" in marker)) {
    return card("Totals", el("p", { class: "quiet" }, "Another version of Log Rollup wrote its completion marker."));
  }
  const { pack, pack_cpu: cpu } = marker.seconds;
  const after = (Date.parse(marker.completed_at) - Date.parse(addHours(hour, 1))) / 1000;
  const left = marker.left_out;
  const leftOut = Object.entries(left).filter(([, count]) => count);
  return card(
    "Totals",
    list([
      ["Raw objects", number(marker.objects)],
      ...expiry(answer),
      ["Bytes in", exact(marker.bytes_in)],
      ["Bytes out", exact(marker.bytes_out) + (marker.separator_bytes ? `, ${exact(marker.separator_bytes)} of them added as newlines` : "")],
      ...unpacked(marker),
      ...savings(marker),
      ["Parts", number(marker.parts)],
      ...(marker.groups === undefined ? [] : [["Groups", number(marker.groups)]]),
      ...noted(marker),
      ["Left out", leftOut.length ? leftOut.map(([kind, count]) => `${number(count)} ${kind}`).join(", ") : "nothing"],
      ["Complete", `${instant(marker.completed_at)}${after > 0 ? `, ${seconds(after)} after its end` : ""}`],
      ["Packing", `${seconds(pack)} in all tasks, ${seconds(cpu)} of CPU`],
      ["Throughput per task", pack ? `${(marker.bytes_in / 1e6 / pack).toFixed(1)} MB/s` : "–"],
      ["Peak sockets", `${number(marker.peak.sockets)} of ${number(marker.max_connections)} in one task`],
      ["Peak open files, memory", `${number(marker.peak.open_files)}, ${size(marker.peak.rss_bytes)}`],
      ["Requests", requests(marker)],
    ]),
  );
}

/** How many raw objects were deleted because the parts hold them, if any were. */
function expiry({ expired }) {
  if (!expired) return [];
  if (!expired.finished) return [["Expired", `raw objects are being deleted since ${instant(expired.at)}`]];
  return [["Expired", `${counted(expired.objects, "raw object")}, ${size(expired.size)}, on ${instant(expired.at)}: the parts hold them`]];
}

/** How many raw objects the parts have as their content, if any. */
function unpacked({ recompressed: count, bytes_unpacked: bytes }) {
  if (!count) return [];
  return [["Recompressed", `${number(count)} raw objects; with their content, all raw objects have ${size(bytes)}`]];
}

/** What compression saves, if any part is compressed. */
function savings({ bytes_in: bytes, bytes_stored: stored }) {
  if (!stored) return [];
  return [
    ["Bytes stored", exact(stored)],
    ["Ratio", ratio(bytes, stored)],
    ["Saved", saved(bytes, stored)],
  ];
}

/** Foreign and damaged objects, if there are any. */
function noted({ foreign, damaged }) {
  const rows = [];
  if (foreign) rows.push(["Foreign objects", `${number(foreign)} beside the parts; they were not changed`]);
  if (damaged) rows.push(["Damaged objects", `${number(damaged)} compressed objects that cannot be decompressed, each in its own part`]);
  return rows;
}

/** What an operator can do about an hour that is not complete. */
function whatToDo({ stream, hour, now, state, why, runs: hourRuns, tasks }) {
  const failed = tasks.find((task) => task.state === "failed");
  const command = `airflow dags trigger ${stream.dag_id} --conf '{"hour": "${hour}"}'`;
  const advice = {
    damaged: "Clear the run. plan_hour reads the hour again and packs what is missing, or its log says what to do first. Don't delete anything by hand, because raw objects may have expired.",
    failed: "The log of the failed task says what went wrong and how to fix it. Then clear the run.",
    late: "No task has failed. If a task is running, its log says what it waits for. Else see its state, the pool and the workers.",
    waiting: "Nothing. It continues once no object has arrived for the stream's quiet period.",
    running: "Nothing. Packed parts appear here once the hour has been planned.",
    unknown: "Fix the access to the bucket, then refresh.",
    open: "Nothing. Its run is created after its end.",
    none: hour > now ? "Nothing. Its run is created after its end." : null,
  }[state];
  const byHand = [
    el("p", {}, "To roll it up, trigger the Dag for this hour, in Airflow or with"),
    el(
      "div",
      { class: "place" },
      el("code", {}, command),
      copyButton(command, "copy command"),
    ),
  ];
  return card(
    "What to do",
    // The head shows the reason for a damaged hour, which is long.
    why && state !== "damaged" ? el("p", { class: "quiet" }, `${state === "unknown" ? "Whether it is complete is not known" : "It is not complete"}: ${why}.`) : null,
    el("div", { class: "advice" }, advice ? el("p", {}, advice) : byHand),
    failed ? away(taskPage(stream.dag_id, hourRuns[0].run_id, failed), `Open ${failed.task_id}`, "button") : null,
  );
}

function requests(marker) {
  const total = Object.values(marker.requests).reduce((sum, count) => sum + count, 0);
  return `${number(total)}, ${number(marker.retries)} retried, ${number(marker.throttles)} throttled`;
}

function proof({ marker }) {
  if (!marker?.verified) return null;
  const rows = ["part", "object"].flatMap((kind) =>
    Object.entries(marker.verified[`${kind}s`]).map(([how, count]) => [
      counted(count, kind),
      el("span", {}, el("code", {}, how), ` ${PROOFS[how] ?? ""}`),
    ]),
  );
  if (!rows.length) rows.push(["Nothing", "the hour has no objects"]);
  return card("How it was proven", list([...rows, ["Plan", el("code", {}, marker.plan_id)], ["Proven", instant(marker.validated_at)]]));
}

function places({ raw, aggregated, records }) {
  // A template is only shown, because it is no prefix of an object.
  const line = (name, prefix, copied, consoleUrl) =>
    el(
      "div",
      { class: "place" },
      el("code", {}, prefix),
      copied ? copyButton(prefix, `copy ${name} ${prefix}`) : null,
      consoleLink(consoleUrl),
    );
  const place = (name, { url, prefixes, captures, console: consoleUrl }) =>
    el(
      "div",
      { class: "where" },
      el("h4", {}, captures.length ? `${name}: a prefix for each ${captures.join(" and ")}` : name),
      prefixes.length ? prefixes.map((prefix) => line(name, prefix, true, consoleUrl)) : line(name, url, false, consoleUrl),
    );
  return card("In the bucket", place("Raw objects", raw), place("Parts", aggregated), records ? place("Manifest and _SUCCESS of the hour", records) : null);
}

function late({ late: found, marker, runs: hourRuns }) {
  if (!found) return null;
  const since = marker?.completed_at && Date.parse(marker.completed_at) > Date.parse(found.at);
  let then = "The hour is not rerun, because raw objects have vanished: its parts may be the last copy.";
  if (since) then = "The hour has been completed again since.";
  else if (found.rerun && hourRuns.some(({ state }) => state === "running" || state === "queued")) then = "The hour is being rerun.";
  else if (found.rerun) then = "log_rollup_late reruns the hour. If that has failed or not begun, see its task rerun_… for the reason.";
  return card(
    "Late objects",
    list([
      ["Came late", number(found.late)],
      ["Changed", number(found.changed)],
      ["Vanished", number(found.vanished)],
      ["Found", instant(found.at)],
    ]),
    el("p", { class: "quiet" }, then),
  );
}

function runs({ stream, runs: hourRuns }) {
  if (!hourRuns.length) return card("Runs", el("p", { class: "quiet" }, "This Airflow has no run of this hour."));
  return card(
    "Runs",
    el(
      "ul",
      { class: "runs" },
      hourRuns.map((run) =>
        el(
          "li",
          {},
          el("span", { class: "task-state", "data-task": run.state }, run.state),
          el("a", { href: runPage(stream.dag_id, run.run_id), click: leave }, run.run_id),
          el("span", { class: "quiet" }, took(run)),
        ),
      ),
    ),
  );
}

function took({ started_at: start, ended_at: end }) {
  if (!start) return "not started";
  if (!end) return `since ${clock(start)}`;
  return `${dayOnly(end)}, ${clock(end)}; took ${seconds((Date.parse(end) - Date.parse(start)) / 1000)}`;
}

function shards({ stream, runs: hourRuns, tasks }) {
  if (!tasks.length) return null;
  const rank = (task) => (STEPS.indexOf(task.task_id) + 1 || STEPS.length + 1) * 10_000 + task.map_index;
  const rows = [...tasks].sort((one, other) => rank(one) - rank(other)).map((task) => {
    const length = task.started_at && task.ended_at && task.tries ? seconds((Date.parse(task.ended_at) - Date.parse(task.started_at)) / 1000) : "";
    return el(
      "tr",
      {},
      el("td", {}, el("a", { href: taskPage(stream.dag_id, hourRuns[0].run_id, task), click: leave }, task.map_index < 0 ? task.task_id : `${task.task_id}[${task.map_index}]`)),
      el("td", {}, el("span", { class: "task-state", "data-task": task.state ?? "none" }, task.state ?? "not yet")),
      el("td", {}, task.title ?? ""),
      el("td", { class: "number" }, length),
      el("td", { class: "number" }, task.tries ? number(task.tries) : ""),
    );
  });
  return card("Tasks and shards of the last run", table(["Task", "State", "Shard", "Took", "Tries"], rows, [3, 4]));
}

function parts(answer) {
  const { parts: packed, parts_found: found, stream, unclear, planned, state } = answer;
  if (!packed.length) return unclear && state !== "damaged" ? card("Parts", el("p", { class: "quiet" }, unclear)) : null;
  const isCompressed = packed.some((part) => part.frames);
  const heads = [
    "Part", "Objects", ...(isCompressed ? ["Frames"] : []), "Size", ...(isCompressed ? ["Content", "Ratio"] : []),
    `Full, of ${size(stream.part_size)}`, "CRC64-NVME", "Proven by",
  ];
  const rows = packed.flatMap((part, index) => partRows(answer, part, index, isCompressed ? heads.length : 0));
  const all = Math.max(found, packed.length);
  const count = planned && state !== "complete" ? `${number(all)} of ${number(planned.parts)}` : number(all);
  const rest = all - packed.length;
  return card(
    `Parts (${count})`,
    rest ? el("p", { class: "quiet" }, `The first ${number(packed.length)} are shown; the manifest has all.`) : null,
    table(heads, rows, isCompressed ? [1, 2, 3, 4, 5] : [1, 2]),
  );
}

/** The rows of a part: its own, and that of its frames. `columns` is the number of columns if any part is compressed, else 0. */
function partRows(answer, part, index, columns) {
  const bytes = part.frames ? part.content_size : part.size;
  // While an hour is being built, its parts are not in a manifest yet.
  const detail = part.frames && answer.state === "complete" ? frames(answer, part, index, columns) : null;
  const cell = (value) => (columns ? el("td", { class: "number" }, value) : null);
  const row = el(
    "tr",
    {},
    el("td", {}, el("code", {}, part.name)),
    el("td", { class: "number" }, number(part.objects)),
    cell(detail ? detail.button : part.frames ? number(part.frames) : ""),
    el("td", { class: "number", title: `${number(part.size)} bytes` }, size(part.size)),
    columns ? el("td", { class: "number", title: part.frames ? `${number(bytes)} bytes` : null }, part.frames ? size(bytes) : "") : null,
    cell(part.frames ? ratio(bytes, part.size) : ""),
    el("td", {}, part.copied ? el("span", { class: "quiet" }, "copied by S3, because larger than a part") : fillBar(bytes / answer.stream.part_size)),
    el("td", {}, part.crc64nvme ? el("code", {}, part.crc64nvme) : el("span", { class: "quiet" }, "none")),
    el("td", {}, part.proof ? el("span", { class: "proven", title: PROOFS[part.proof] }, glyph("complete"), part.proof) : el("span", { class: "quiet" }, "packed, not proven yet")),
  );
  return detail ? [row, detail.row] : [row];
}

/** Ask for confirmation before a run is cleared, with the number of task instances. */
async function askToClear(stream, hour, run, done) {
  const message = el("p", { role: "status" }, "Counting the tasks …");
  const yes = el("button", { type: "button", class: "primary", disabled: true }, "Clear the run");
  const no = el("button", { type: "button", click: () => box.close() }, "Cancel");
  const box = el(
    "dialog",
    { "aria-labelledby": "clear-title", close: () => box.remove() },
    el("h3", { id: "clear-title" }, `Clear the run of ${dayOnly(hour)}, ${span(hour)}?`),
    el("p", {}, "All its tasks run again. A complete hour that has not changed stays as it is; otherwise only the parts that differ are packed again."),
    el("p", {}, el("code", {}, run.run_id)),
    message,
    el("div", { class: "actions" }, no, yes),
  );
  document.body.append(box);
  box.showModal();
  no.focus();
  try {
    const { total_entries: count } = await clearRun(stream.dag_id, run.run_id, true);
    message.textContent = `${number(count)} task instances will be cleared.`;
    yes.disabled = false;
  } catch (error) {
    message.textContent = error.message;
  }
  yes.addEventListener("click", async () => {
    yes.disabled = true;
    try {
      await clearRun(stream.dag_id, run.run_id, false);
      box.close();
      done();
    } catch (error) {
      message.textContent = error.message;
    }
  });
}
