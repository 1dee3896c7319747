"""Which failures of a task are retried."""

from datetime import timedelta

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from include.log_rollup.errors import PermanentError, ThrottledError

RETRIES = 4
RETRY_DELAY = timedelta(seconds=30)


def retry_policy() -> ExceptionRetryPolicy:
    """Fail at once what a retry cannot mend; give S3 time when it is overloaded; retry the rest soon."""
    return ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=PermanentError,
                action=RetryAction.FAIL,
                reason="A retry cannot mend this; the error says what can",
            ),
            RetryRule(
                exception=ThrottledError,
                action=RetryAction.RETRY,
                retry_delay=timedelta(minutes=2),
                reason="S3 asks to slow down",
            ),
        ],
        default=RetryAction.DEFAULT,
    )
