"""Notifies operators, through Airflow's notifiers, of runs that have failed or missed their deadline."""

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
# Texts for those arguments of a notifier that the streams file does not give, by the argument's name.
DEFAULT_TEXTS = {
    "subject": "{{ log_rollup.title }}",
    "html_content": '<p>{{ log_rollup.text }}</p><p><a href="{{ log_rollup.url }}">{{ log_rollup.url }}</a></p>',
    "message": "{{ log_rollup.text }} {{ log_rollup.url }}",
    "message_body": "{{ log_rollup.text }} {{ log_rollup.url }}",
    "text": "{{ log_rollup.text }} {{ log_rollup.url }}",
}
# A run in the form in which the triggerer gets it, to try out templates.
_SAMPLE_RUN = {
    **dict.fromkeys(("dag_id", "dag_run_id", "run_type", "state", "note"), "x"),
    **dict.fromkeys(("logical_date", "run_after", "queued_at", "start_date", "end_date"), "x"),
    **dict.fromkeys(("data_interval_start", "data_interval_end"), "2026-11-23T08:00:00Z"),
    "conf": {},
}


@dataclass(frozen=True, slots=True)
class Notice:
    """The variable ``log_rollup`` in the templates of a notifier.

    :param event: ``failed`` or ``deadline``
    :param hour: as in ``2026-11-23T08:00:00Z``; empty if the run was triggered without one
    :param title: one line, for a subject
    :param text: what happened and what to do, without the URL
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
    """Create each notifier of a stream and render its templates once, so that errors show when the Dag is parsed.

    :raises ConfigurationError: if that fails, with the stream, the entry and the fix
    """
    for number, notifier in enumerate(stream.notify, 1):
        try:
            _try_templates(make_notifier(notifier), stream)
        except ConfigurationError as error:
            raise ConfigurationError(f"stream {stream.name!r}: notify: entry {number}: {error}") from error


def _try_templates(notifier: BaseNotifier, stream: Stream) -> None:
    """Render the templates for a missed deadline, which has fewer variables than a failed run."""
    context = {"dag_run": _SAMPLE_RUN, "deadline": {}}
    notice = _notice(stream.name, context, DEADLINE, "", "")
    try:
        notifier.render_template_fields({**context, "log_rollup": notice})
    except TemplateSyntaxError as error:
        raise ConfigurationError(f"a template of it cannot be read: {error}") from error
    except UndefinedError as error:
        if stream.deadline is not None:
            raise ConfigurationError(
                f"a template of it cannot be used: {error}. For a missed deadline, templates know only "
                f"log_rollup, dag_run (times as text) and deadline."
            ) from error


def failure_callback(stream: Stream) -> Callable[[Mapping[str, Any]], None] | None:
    """The failure callback of a stream's Dag; None if the stream has no notifiers."""
    return partial(tell_of_failure, stream) if stream.notify else None


def deadline_alert(stream: Stream) -> DeadlineAlert | None:
    """The deadline of a stream's runs, counted from when a run was queued; None if the stream has none.

    Counted from the logical date, runs of a backfill would miss it before they start. The triggerer calls the
    notifiers, so no free slot of a worker is needed.
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
    """Create a notifier, with default texts for the arguments that the streams file does not give.

    :raises ConfigurationError: if the class cannot be imported, or does not accept the arguments
    """
    module, _, name = notifier.path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"class: {notifier.path} cannot be imported ({error}); fix the name, or install the provider that "
            f"has it"
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, BaseNotifier)):
        raise ConfigurationError(
            f"class: {notifier.path} is no notifier; name a subclass of airflow.sdk.BaseNotifier"
        )
    accepted = _parameters_of(cls)
    arguments: dict[str, Any] = {key: text for key, text in DEFAULT_TEXTS.items() if key in accepted}
    if "json" in accepted and "data" not in notifier.arguments:
        # The form that the webhooks of most chats expect.
        arguments["json"] = {"text": DEFAULT_TEXTS["text"]}
    try:
        made: BaseNotifier = cls(**{**arguments, **notifier.arguments})
    except Exception as error:
        raise ConfigurationError(
            f"{notifier.path} cannot be created: {error}; it takes {', '.join(accepted)}"
        ) from error
    return made


def _parameters_of(cls: type) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, one in inspect.signature(cls).parameters.items() if one.kind in kinds]


def tell_of_failure(stream: Stream, context: Mapping[str, Any]) -> None:
    """Notify of a failed run; called by the Dag processor.

    :raises RollupError: if a notifier failed, after all others were called
    """
    instance = context.get("ti")
    task = f" in {instance.task_id}" if instance else ""
    notice = _notice(stream.name, context, FAILED, "has failed", f"{task}; that task's log says what to do")
    failures = []
    for notifier in stream.notify:
        try:
            make_notifier(notifier)({**context, "log_rollup": notice})
        except Exception as error:
            failures.append(_log_failure(notifier, error))
    _raise_failures(failures)


async def tell_of_deadline(
    stream: str, deadline: str, notifiers: list[dict[str, Any]], context: dict[str, Any]
) -> None:
    """Notify of a run that has missed its deadline; called by the triggerer.

    A queued run of a backfill is not reported: a backfill queues all its runs at once. Airflow stores the path of
    this function with each deadline, so its name must not change.

    :param deadline: as in ``1h30m``
    :raises RollupError: if a notifier failed, after all others were called
    """
    run = context["dag_run"]
    if run["run_type"] == "backfill" and run["state"] == "queued":
        log.info("the run %s is still queued in a backfill; no notification is sent", run["dag_run_id"])
        return
    state = f", the run is {run['state']}" if run["state"] else ""
    notice = _notice(
        stream, context, DEADLINE, "is not complete in time", f": it was queued {deadline} ago{state}"
    )
    failures = []
    for settings in notifiers:
        notifier = Notifier(**settings)
        try:
            # In a thread, because it may import a whole provider.
            made = await sync_to_async(make_notifier)(notifier)
            await _send(made, {**context, "log_rollup": notice})
        except Exception as error:
            failures.append(_log_failure(notifier, error))
    _raise_failures(failures)


async def _send(notifier: BaseNotifier, context: dict[str, Any]) -> None:
    if type(notifier).async_notify is BaseNotifier.async_notify:
        await sync_to_async(notifier)(context)
    else:
        notifier.context = context
        await notifier


def _notice(stream: str, context: Mapping[str, Any], event: str, what: str, more: str) -> Notice:
    run = context.get("dag_run")
    run_id = _field(run, "dag_run_id") or _field(run, "run_id") or context.get("run_id") or ""
    hour = _hour(_field(run, "conf"), _field(run, "data_interval_start"))
    of_hour = f"hour {format_hour(hour)}" if hour else f"run {run_id}"
    return Notice(
        event=event,
        stream=stream,
        hour=format_hour(hour) if hour else "",
        title=f"Log Rollup: {of_hour} of {stream} {what}",
        text=f"Log Rollup: {of_hour} of the stream {stream} {what}{more}.",
        url=run_page(_field(run, "dag_id") or context["dag"].dag_id, run_id),
        hour_url=hour_page(stream, hour) if hour else "",
    )


def _field(run: Any, name: str) -> Any:
    """A field of a run, which is an object in the Dag processor and a mapping in the triggerer."""
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


def _log_failure(notifier: Notifier, error: Exception) -> str:
    log.error("notifier %s failed: %s", notifier.path, error)
    return f"{notifier.path}: {error}"


def _raise_failures(failures: list[str]) -> None:
    if failures:
        raise RollupError(f"some notifiers failed: {'; '.join(failures)}")
