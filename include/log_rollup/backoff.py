"""How long to wait before something is tried again."""

import random


def seconds_until_next_try(first: float, tried: int, most: float | None = None) -> float:
    """Exponential backoff with jitter: at random between half of ``first * 2**tried`` and all of it.

    :param first: in seconds
    :param tried: number of tries so far
    :param most: the most seconds; None for no limit
    """
    longest = first * 2**tried
    if most is not None:
        longest = min(longest, most)
    return random.uniform(longest / 2, longest)
