"""What can go wrong with a request, by the kind of request."""

from enum import StrEnum


class Fate(StrEnum):
    """What happens to a request."""

    DONE = "done"
    REFUSED = "refused"
    """The client gets an error, and the request has no effect."""
    THROTTLED = "throttled"
    LOST = "done, but its answer is lost"
    LATE = "not answered; done later"
    TWICE = "done, and done again later"
    STALLED = "never answered"
    WRONG_BYTES = "a bit of its body is flipped"
    CUT_SHORT = "the last byte of its body is missing"


READ_FATES = (Fate.REFUSED, Fate.THROTTLED)
WRITE_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST, Fate.LATE, Fate.TWICE)
# Of writes that are not simulated to take effect a second time.
ONCE_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST, Fate.LATE)
# Of writes that are not simulated to take effect later either.
PROMPT_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST)
GET_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.STALLED, Fate.CUT_SHORT, Fate.WRONG_BYTES)
PUT_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST, Fate.LATE, Fate.TWICE, Fate.STALLED, Fate.WRONG_BYTES)
COPY_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST, Fate.LATE, Fate.TWICE, Fate.STALLED)


def flip_bit(body: bytes, bit: int) -> bytes:
    """Return the bytes with one bit flipped; one byte if there are none."""
    if not body:
        return b"?"
    changed = bytearray(body)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
