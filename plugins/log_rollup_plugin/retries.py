"""Which failures of a task Airflow retries: decided by the class of the error, see ``s3.error_mapping``."""

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from include.log_rollup import limits
from include.log_rollup.errors import PermanentError, ThrottledError


def retry_policy() -> ExceptionRetryPolicy:
    """Permanent errors fail at once, throttled requests are retried after 2 minutes, all others soon."""
    return ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=PermanentError,
                action=RetryAction.FAIL,
                reason="A retry cannot help; the error says what does",
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
