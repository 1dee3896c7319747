"""Who is told, through Airflow's notifiers, that an hour has failed or is not complete in time."""

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from importlib import import_module
from typing import Any

from airflow.sdk import BaseNotifier
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from asgiref.sync import sync_to_async
from jinja2 import TemplateSyntaxError, UndefinedError

from include.log_rollup.errors import ConfigurationError, RollupError
from include.log_rollup.hour.layout import floor_hour, format_hour, parse_hour
from include.log_rollup.streams import Notifier, Stream
from include.log_rollup.units import format_duration
from log_rollup_plugin.urls import hour_page, run_page

log = logging.getLogger(__name__)

FAILED = "failed"
DEADLINE = "deadline"
# What a notifier says where the streams file does not, by the names that such arguments have.
TEXTS = {
    "subject": "{{ log_rollup.title }}",
    "html_content": '<p>{{ log_rollup.text }}</p><p><a href="{{ log_rollup.url }}">{{ log_rollup.url }}</a></p>',
    "message": "{{ log_rollup.text }} {{ log_rollup.url }}",
    "message_body": "{{ log_rollup.text }} {{ log_rollup.url }}",
    "text": "{{ log_rollup.text }} {{ log_rollup.url }}",
}
# A run as the triggerer is handed it.
_RUN = {
    **dict.fromkeys(("dag_id", "dag_run_id", "run_type", "state", "note"), "x"),
    **dict.fromkeys(("logical_date", "run_after", "queued_at", "start_date", "end_date"), "x"),
    **dict.fromkeys(("data_interval_start", "data_interval_end"), "2026-11-23T08:00:00Z"),
    "conf": {},
}


@dataclass(frozen=True, slots=True)
class Notice:
    """What a notifier's templates find as ``log_rollup``.

    :param event: ``failed`` or ``deadline``
    :param hour: as in ``2026-11-23T08:00:00Z``; empty if the run was triggered without one
    :param title: one line
    :param text: what happened and what to do, without the link
    :param url: of the run
    :param hour_url: of the hour's page; empty without an hour
    """

    event: str
    stream: str
    hour: str
    title: str
    text: str
    url: str
    hour_url: str


def check_notifiers(stream: Stream) -> None:
    """Make each of a stream's notifiers once, and have it put its words together.

    :raises ConfigurationError: if it cannot, naming stream, key and fix
    """
    for number, notifier in enumerate(stream.notify, 1):
        try:
            _rehearse(make_notifier(notifier), stream)
        except ConfigurationError as error:
            raise ConfigurationError(f"stream {stream.name!r}: notify: entry {number}: {error}") from error


def _rehearse(notifier: BaseNotifier, stream: Stream) -> None:
    """Render the templates with what there is when a deadline has passed; when a run has failed there is more."""
    context = {"dag_run": _RUN, "deadline": {}}
    notice = _notice(stream.name, context, DEADLINE, "", "")
    try:
        notifier.render_template_fields({**context, "log_rollup": notice})
    except TemplateSyntaxError as error:
        raise ConfigurationError(f"a template of it cannot be read: {error}") from error
    except UndefinedError as error:
        if stream.deadline is not None:
            raise ConfigurationError(
                f"a template of it cannot be used: {error}. Of a passed deadline, templates know only "
                f"log_rollup, dag_run (times as text) and deadline."
            ) from error


def failure_callback(stream: Stream) -> Callable[[Mapping[str, Any]], None] | None:
    """What the Dag of a stream calls when a run has failed; None where nobody is to be told."""
    return partial(tell_of_failure, stream) if stream.notify else None


def deadline_alert(stream: Stream) -> DeadlineAlert | None:
    """The deadline of a stream's runs, from when they were queued; None if it has none.

    From the logical date it would be past already in a backfill, and a cleared run has all of its time again.
    It is told by the triggerer, which does not need a free slot of a worker for it.
    """
    if stream.deadline is None:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=stream.deadline,
        callback=AsyncCallback(
            tell_of_deadline,
            {
                "stream": stream.name,
                "deadline": format_duration(stream.deadline),
                "notifiers": [asdict(notifier) for notifier in stream.notify],
            },
        ),
    )


def make_notifier(notifier: Notifier) -> BaseNotifier:
    """The notifier, with our words where it has none of its own.

    :raises ConfigurationError: if there is no such class, or it does not take these arguments
    """
    module, _, name = notifier.path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"class: {notifier.path} cannot be imported ({error}); mend the name, or install the provider that "
            f"has it"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, BaseNotifier)):
        raise ConfigurationError(
            f"class: {notifier.path} is no notifier; name a subclass of airflow.sdk.BaseNotifier"
        )
    taken = _taken_by(found)
    words: dict[str, Any] = {key: text for key, text in TEXTS.items() if key in taken}
    if "json" in taken and "data" not in notifier.arguments:
        # As the webhooks of most chats want it.
        words["json"] = {"text": TEXTS["text"]}
    try:
        made: BaseNotifier = found(**{**words, **notifier.arguments})
    except Exception as error:
        raise ConfigurationError(
            f"{notifier.path} cannot be made: {error}; it takes {', '.join(taken)}"
        ) from error
    return made


def _taken_by(cls: type) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, one in inspect.signature(cls).parameters.items() if one.kind in named]


def tell_of_failure(stream: Stream, context: Mapping[str, Any]) -> None:
    """Tell of a failed run; called by the Dag processor.

    :raises RollupError: if somebody could not be told, after everybody else was
    """
    instance = context.get("ti")
    task = f" in {instance.task_id}" if instance else ""
    notice = _notice(stream.name, context, FAILED, "has failed", f"{task}; that task's log says what to do")
    failures = []
    for notifier in stream.notify:
        try:
            make_notifier(notifier)({**context, "log_rollup": notice})
        except Exception as error:
            failures.append(_failure(notifier, error))
    _raise(failures)


async def tell_of_deadline(
    stream: str, deadline: str, notifiers: list[dict[str, Any]], context: dict[str, Any]
) -> None:
    """Tell of a run whose deadline has passed; called by the triggerer.

    Backfills queue all their runs at once, so one that is still queued waits for its turn: nobody is told.

    :param deadline: in words
    :raises RollupError: if somebody could not be told, after everybody else was
    """
    run = context["dag_run"]
    if run["run_type"] == "backfill" and run["state"] == "queued":
        log.info("the run %s waits for its turn in a backfill; nobody is told", run["dag_run_id"])
        return
    state = f", the run is {run['state']}" if run["state"] else ""
    notice = _notice(
        stream, context, DEADLINE, "is not complete in time", f": it was queued {deadline} ago{state}"
    )
    failures = []
    for settings in notifiers:
        notifier = Notifier(**settings)
        try:
            # In a thread: it may import a whole provider.
            made = await sync_to_async(make_notifier)(notifier)
            await _tell(made, {**context, "log_rollup": notice})
        except Exception as error:
            failures.append(_failure(notifier, error))
    _raise(failures)


async def _tell(notifier: BaseNotifier, context: dict[str, Any]) -> None:
    if type(notifier).async_notify is BaseNotifier.async_notify:
        await sync_to_async(notifier)(context)
    else:
        notifier.context = context
        await notifier


def _notice(stream: str, context: Mapping[str, Any], event: str, what: str, more: str) -> Notice:
    run = context.get("dag_run")
    run_id = _of(run, "dag_run_id") or _of(run, "run_id") or context.get("run_id") or ""
    hour = _hour(_of(run, "conf"), _of(run, "data_interval_start"))
    of_hour = f"hour {format_hour(hour)}" if hour else f"run {run_id}"
    return Notice(
        event=event,
        stream=stream,
        hour=format_hour(hour) if hour else "",
        title=f"Log Rollup: {of_hour} of {stream} {what}",
        text=f"Log Rollup: {of_hour} of the stream {stream} {what}{more}.",
        url=run_page(_of(run, "dag_id") or context["dag"].dag_id, run_id),
        hour_url=hour_page(stream, hour) if hour else "",
    )


def _of(run: Any, name: str) -> Any:
    """A field of the run: the Dag processor has it as an object, the triggerer as JSON."""
    return run.get(name) if isinstance(run, Mapping) else getattr(run, name, None)


def _hour(conf: Mapping[str, Any] | None, start: datetime | str | None) -> datetime | None:
    try:
        if explicit := (conf or {}).get("hour"):
            return parse_hour(explicit)
    except ConfigurationError:
        return None
    if isinstance(start, str):
        return parse_hour(start)
    return floor_hour(start) if start else None


def _failure(notifier: Notifier, error: Exception) -> str:
    log.error("%s could not tell: %s", notifier.path, error)
    return f"{notifier.path}: {error}"


def _raise(failures: list[str]) -> None:
    if failures:
        raise RollupError(f"not everybody was told: {'; '.join(failures)}")
