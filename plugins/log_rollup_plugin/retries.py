"""Airflow's retry policy, by the class of the error (see :mod:`log_rollup_plugin.s3.error_mapping`)."""

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from include.log_rollup import limits
from include.log_rollup.errors import PermanentError, ThrottledError


def retry_policy() -> ExceptionRetryPolicy:
    """Fail at once on permanent errors; wait longer after throttling; retry all others after the task's delay."""
    return ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=PermanentError,
                action=RetryAction.FAIL,
                reason="A retry cannot fix this error; its message says what to do",
            ),
            RetryRule(
                exception=ThrottledError,
                action=RetryAction.RETRY,
                retry_delay=limits.THROTTLED_RETRY_DELAY,
                reason="S3 asks to slow down",
            ),
        ],
        default=RetryAction.DEFAULT,
    )
