"""The operator of log_rollup_expire: deletes old raw objects of a stream, after an approval if required."""

import logging
from collections.abc import Mapping
from typing import Any

import pendulum
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Context

from include.log_rollup import limits
from include.log_rollup.errors import ConfigurationError, PermanentError
from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.steps.expire_stream import expire_stream, has_expired, old_hours
from include.log_rollup.streams import Stream, load_streams
from include.log_rollup.units import format_duration, format_size
from log_rollup_plugin import metrics
from log_rollup_plugin.s3.stream_store import StreamStore, store_for

log = logging.getLogger(__name__)

APPROVE, REJECT = "Approve", "Reject"
REPORT = "report"
"""XCom with what was found and what was deleted."""
ASKED = "asked"
"""XCom with the settings of the stream that a person is asked about."""


class ExpireRawOperator(HITLOperator):
    """Reports or deletes the raw objects of a stream's old hours; mapped over the streams with ``expire_raw``.

    With ``mode: report`` it only says what can be deleted. With ``mode: delete`` it deletes, unless the stream
    requires an approval for its first deletion, or for that many objects. Then the task waits for a person without
    a slot of the pool, and deletes at most as many objects as were approved.

    When the task continues, Airflow takes the stream from the Dag file as it is then, by the position in the list
    of streams. So the question's stream is kept in an XCom.

    :param stream_name: of the stream
    """

    def __init__(self, *, stream_name: str, **kwargs: Any) -> None:
        super().__init__(
            subject="Delete raw objects?",
            options=[APPROVE, REJECT],
            # Of a question that nobody answers in time.
            defaults=[REJECT],
            response_timeout=limits.EXPIRY_APPROVAL_TIMEOUT,
            **kwargs,
        )
        self.stream_name = stream_name

    def execute(self, context: Context) -> dict[str, Any] | None:
        """See :func:`include.log_rollup.steps.expire_stream.expire_stream`; returns the report without hours."""
        stream, rules = self._stream()
        if rules.mode == "report":
            return self._expire(context, stream, delete=False)
        is_first = rules.approve_first and not self._has_expired(context, stream)
        if is_first or rules.approve_above is not None:
            found = self._expire(context, stream, delete=False)
            if why := _why_to_ask(rules, found["objects"], is_first):
                self._ask(context, stream, found, why)
        return self._expire(context, stream, delete=True)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any] | None:
        """Continue after a person has answered, or nobody has."""
        answer = super().execute_complete(context, event)
        report = context["ti"].xcom_pull(key=REPORT, map_indexes=context["ti"].map_index)
        if answer["chosen_options"] != [APPROVE] or not isinstance(report, Mapping):
            log.warning("the deletion was not approved: nothing was deleted; the next run asks again")
            return {**_short(report or {}), "approved": False}
        asked = context["ti"].xcom_pull(key=ASKED, map_indexes=context["ti"].map_index) or {}
        self.stream_name = report["stream"]
        stream, _ = self._stream()
        if _settings(stream) != asked:
            log.warning(
                "the settings of stream %s have changed since the question: nothing was deleted; the next run "
                "asks again",
                stream.name,
            )
            return {**_short(report), "approved": False}
        return self._expire(context, stream, delete=True, at_most=int(report["objects"]))

    def _stream(self) -> tuple[Stream, ExpireRaw]:
        for stream in load_streams():
            if stream.name == self.stream_name and stream.expire_raw is not None:
                return stream.for_expiry, stream.expire_raw
        raise ConfigurationError(
            f"stream {self.stream_name!r} has no expire_raw any more, so nothing is deleted; wait until the Dag "
            f"is parsed again"
        )

    def _has_expired(self, context: Context, stream: Stream) -> bool:
        with _store(stream) as store:
            return has_expired(store, stream, self._hours(context, stream))

    def _hours(self, context: Context, stream: Stream) -> Any:
        # The time of the run, so that a run that was approved deletes no more hours than it has asked about.
        run_after = pendulum.instance(context["dag_run"].run_after)
        return old_hours(stream, min(run_after, pendulum.now("UTC")))

    def _expire(
        self, context: Context, stream: Stream, *, delete: bool, at_most: int | None = None
    ) -> dict[str, Any]:
        with _store(stream) as store:
            result = expire_stream(
                store,
                stream,
                self._hours(context, stream),
                delete=delete,
                at_most=at_most,
                seconds=limits.EXPIRY_TIME_SHARE * stream.task_timeout.total_seconds(),
            )
        report = result.to_json()
        context["ti"].xcom_push(key=REPORT, value=report)
        metrics.raw_expired(result)
        return _short(report)

    def _ask(self, context: Context, stream: Stream, found: Mapping[str, Any], why: str) -> None:
        """Wait for an answer; this does not return."""
        assert stream.expire_raw is not None
        objects, size = f"{found['objects']:,}", format_size(found["bytes"])
        self.subject = f"Delete {objects} raw objects ({size}) of stream {stream.name}?"
        self.body = (
            f"{why}. {found['hours']:,} hours are older than {format_duration(stream.expire_raw.after)}. Each raw "
            f"object that is deleted has a proven copy in a part below `{stream.aggregated}`.\n\n"
            f"The XCom `report` of this task names the hours. Without an answer within "
            f"{format_duration(limits.EXPIRY_APPROVAL_TIMEOUT)}, nothing is deleted."
        )
        self._refuse_old_question(context)
        context["ti"].xcom_push(key=ASKED, value=_settings(stream))
        super().execute(context)

    def _refuse_old_question(self, context: Context) -> None:
        """Refuse to ask if Airflow would show another question.

        Airflow 3.3.2 keeps the text of the first question of a task, also when a retry or the cleared task asks.

        :raises PermanentError: if it does, and the text is not that of this question
        """
        # These modules can only be imported where a task runs.
        from airflow.sdk.execution_time.comms import CreateHITLDetailPayload
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        shown = SUPERVISOR_COMMS.send(
            CreateHITLDetailPayload(
                ti_id=context["ti"].id,
                options=self.options,
                subject=self.subject,
                body=self.body,
                defaults=self.defaults,
                params=self.serialized_params,
                assigned_users=[],
            )
        )
        if (shown.subject, shown.body) != (self.subject, self.body):
            raise PermanentError(
                f"Airflow still shows the question of an earlier try, {shown.subject!r}, in place of "
                f"{self.subject!r}: nothing was deleted; trigger log_rollup_expire again, which asks a new "
                f"question"
            )


def _why_to_ask(rules: ExpireRaw, objects: int, is_first: bool) -> str:
    """Why a person has to approve a deletion; empty if nobody has to."""
    if not objects:
        return ""
    if rules.approve_above is not None and objects > rules.approve_above:
        return f"These are more than the {rules.approve_above:,} objects of approve_above"
    return "This is the first deletion of the stream" if is_first else ""


def _settings(stream: Stream) -> dict[str, Any]:
    """The settings that decide which objects are deleted; an approval holds for no others."""
    assert stream.expire_raw is not None
    return {
        "stream": stream.name,
        "raw": stream.raw.text,
        "aggregated": stream.aggregated.text,
        "timezone": stream.timezone,
        "start": stream.start.isoformat(),
        "connections": [stream.aws_conn_id, stream.connection_of_aggregated],
        "expire_raw": stream.expire_raw.model_dump(mode="json"),
    }


def _store(stream: Stream) -> StreamStore:
    return store_for(stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS)


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in ("found", "incomplete")}
