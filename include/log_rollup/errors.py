"""The pipeline's errors, sorted by the one question an operator has: can a retry mend it?"""


class RollupError(Exception):
    """Base of all errors that the pipeline raises on purpose."""


class PermanentError(RollupError):
    """A retry cannot mend this; the message says who has to do what."""


class ConfigurationError(PermanentError):
    """The streams file, the trigger form or the connection holds a value that cannot work."""


class AccessError(PermanentError):
    """S3 refuses the credentials or the operation."""


class CredentialsError(AccessError):
    """There are no credentials, or S3 does not know them; whatever is asked, the answer is the same."""


class MissingBucketError(PermanentError):
    """The bucket does not exist, or not in the region that was asked."""


class NotFoundError(PermanentError):
    """An object that is needed is not there."""


class InputChangedError(PermanentError):
    """The raw hour is no longer what was planned; clearing the run plans it anew."""


class VanishedInputError(PermanentError):
    """Raw objects are gone whose bytes nothing but the hour's parts may still hold."""


class EmptyHourError(PermanentError):
    """The raw hour holds nothing to pack and the stream does not allow that."""


class UnsettledHourError(PermanentError):
    """The raw hour was still being written to when the time-out came."""


class UnsupportedInputError(PermanentError):
    """A raw object is of a kind that cannot be joined end to end."""


class ProofError(PermanentError):
    """What lies in the bucket is not what the plan and the receipts say."""


class SupersededError(PermanentError):
    """Another run has planned the same hour anew, or the plan is gone."""


class ResourceLimitError(PermanentError):
    """The machine's limits do not allow what the task may need."""


class TransientError(RollupError):
    """A retry may mend this: the network, the service, or its load.

    :param retry_after: seconds that the service asked to wait, if it did
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ChangedBufferError(TransientError):
    """Memory does not hold what was read into it: to send it again is of no use, to read it again may be."""


class ThrottledError(TransientError):
    """S3 asks to slow down."""


class ListingError(PermanentError):
    """The store's listing contradicts itself, so that nothing can be concluded from it."""


class UnreadableRecordError(ProofError):
    """A record that says what the hour's parts hold cannot be read; nothing may be replaced without it."""


class TooLargeError(PermanentError):
    """An object is larger than any that is written there."""


class UnsupportedOperationError(PermanentError):
    """The store does not know an operation."""
