// Requests to this page's API and to Airflow's, and links to Airflow's pages.

const HERE = new URL("./", location.href);
const AIRFLOW = new URL("../../", HERE);

/** Why a request failed, for people. `status` is 0 if the server was not reached; `retryMs` is when to ask again, if the
 * server says so. */
export class AnswerError extends Error {
  constructor(status, message, retryMs = null) {
    super(message);
    this.status = status;
    this.retryMs = retryMs;
  }
}

/** Ask this page's API about a stream, or for the list of streams. */
export const ask = (path, parameters = {}) =>
  request(new URL(`api/streams${path}?${new URLSearchParams(parameters)}`, HERE));

/** Ask this page's API for the overview of all streams. */
export const askOverview = (refresh) => request(new URL(`api/overview?${new URLSearchParams({ refresh })}`, HERE));

/** Clear all tasks of a run, or only count them, with the permissions of the user. */
export async function clearRun(dagId, runId, dryRun) {
  const url = new URL(`api/v2/dags/${encodeURIComponent(dagId)}/clearTaskInstances`, AIRFLOW);
  const body = { dag_run_id: runId, dry_run: dryRun, only_failed: false, reset_dag_runs: true };
  return request(url, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

async function request(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", ...options });
  } catch {
    throw new AnswerError(0, "Airflow's api-server does not answer. Is it running?");
  }
  if (response.ok) return response.json();
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  throw new AnswerError(response.status, await reason(response), seconds >= 0 ? seconds * 1000 : null);
}

async function reason(response) {
  if (response.status === 401) return "You are no longer logged in. Reload Airflow and log in.";
  let detail;
  try {
    ({ detail } = await response.json());
  } catch {
    detail = "";
  }
  if (typeof detail !== "string" || !detail) detail = JSON.stringify(detail || response.statusText);
  return response.status === 403 ? `You may not do this: ${detail}` : detail;
}

export const runPage = (dagId, runId) =>
  new URL(`dags/${encodeURIComponent(dagId)}/runs/${encodeURIComponent(runId)}`, AIRFLOW).href;
export const taskPage = (dagId, runId, task) => {
  const mapped = task.map_index >= 0 ? `/mapped/${task.map_index}` : "";
  return `${runPage(dagId, runId)}/tasks/${encodeURIComponent(task.task_id)}${mapped}`;
};
export const dagPage = (dagId) => new URL(`dags/${encodeURIComponent(dagId)}`, AIRFLOW).href;

/**
 * Follow a link out of the frame. Airflow's sandbox does not let the frame navigate the outer window or open a new one, but
 * a link in Airflow's own document may do both.
 */
export function leave(event) {
  if (window.parent === window) return;
  const link = event.currentTarget;
  const outer = window.parent.document;
  event.preventDefault();
  const copy = outer.createElement("a");
  copy.href = link.href;
  copy.rel = "noreferrer";
  if (link.target || event.ctrlKey || event.metaKey) copy.target = "_blank";
  outer.body.append(copy);
  copy.click();
  copy.remove();
}
