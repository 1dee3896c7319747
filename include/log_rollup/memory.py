"""Memory: what a step with very many small objects does about Python's garbage collector."""

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def without_collector(step: Callable[P, T]) -> Callable[P, T]:
    """Do a step without collections of reference cycles.

    The rows of a listing have none, but each of them is looked at in every collection: with a million rows that
    was a third of the planner's CPU.
    """

    @wraps(step)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return step(*args, **kwargs)
        finally:
            if enabled:
                gc.enable()

    return quiet
