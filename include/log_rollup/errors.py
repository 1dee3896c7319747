"""The errors of the pipeline: permanent ones, which a retry can't fix, and transient ones, which it may fix."""


class RollupError(Exception):
    """Base class of all errors of the pipeline."""


class PermanentError(RollupError):
    """A retry cannot fix this; the message says what to do."""


class ConfigurationError(PermanentError):
    """A value in the streams file, the trigger form or the Airflow connection is invalid."""


class AccessError(PermanentError):
    """S3 denies access: it refuses the credentials or the operation."""


class CredentialsError(AccessError):
    """There are no credentials, or S3 does not know them, so every request fails."""


class MissingBucketError(PermanentError):
    """The bucket does not exist, or it is in another region."""


class NotFoundError(PermanentError):
    """A required object does not exist."""


class InputChangedError(PermanentError):
    """Raw objects have changed since the hour was planned; clear the run to plan it again."""


class VanishedInputError(PermanentError):
    """Raw objects no longer exist, and only the existing parts of the hour may still hold their bytes."""


class EmptyHourError(PermanentError):
    """The raw hour has nothing to pack, and the stream does not set `allow_empty`."""


class UnsettledHourError(PermanentError):
    """The raw hour was not settled when the timeout expired."""


class UnsupportedInputError(PermanentError):
    """A raw object has a format that cannot be joined end to end, such as Parquet."""


class ArchivedError(PermanentError):
    """An object is in an archive class, and cannot be read before it has been retrieved from the archive."""


class UnknownLayoutError(PermanentError):
    """No template can read the keys below a prefix."""


class ProofError(PermanentError):
    """The objects in the bucket do not match the plan, the receipts or the manifest."""


class SupersededError(PermanentError):
    """Another run has taken over the hour, or the plan no longer exists."""


class TargetConflictError(PermanentError):
    """Other content exists where objects are to be restored, and overwriting it was not requested."""


class ResourceLimitError(PermanentError):
    """A limit of the machine, such as the number of open files, is too low for the task."""


class TransientError(RollupError):
    """A retry may fix this: a failure of the network or of S3, or too much load.

    :param retry_after: seconds to wait, if S3 stated any (`Retry-After`)
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ChangedBufferError(TransientError):
    """A buffer changed in memory, or was compressed wrongly; only a new try of the task may help."""


class ThrottledError(TransientError):
    """S3 answered that there are too many requests (SlowDown)."""


class ForeignResponseError(TransientError):
    """The response is not one of S3: a proxy or load balancer may have sent it."""


class CutShortError(TransientError):
    """The body of a response ended before the length that the response states."""


class ListingError(PermanentError):
    """The listing of a prefix contradicts itself, so it cannot be used."""


class UnreadableRecordError(ProofError):
    """A record that describes the contents of parts cannot be read; without it, no part may be replaced."""


class TooLargeError(PermanentError):
    """An object that should be a record is larger than any record."""


class UnsupportedOperationError(PermanentError):
    """The S3 server does not support an operation."""
