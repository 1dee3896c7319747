"""Replaces time, random numbers and threads in the pipeline's modules while a scenario is simulated.

What those modules import as ``time``, ``random``, ``secrets``, ``uuid``, ``datetime``, ``threading`` and
``ThreadPoolExecutor`` is replaced by objects of the scheduler.
"""

import importlib
import os
import pkgutil
import random
import secrets
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from types import ModuleType
from typing import Any, Self

import include.log_rollup as pipeline
from include.log_rollup import compression, monitor
from include.log_rollup.compression import codec_of
from include.log_rollup.steps import expire_hour, packer
from simulation.codec import FakeCodec, Library, fake_codec_of
from simulation.scheduler import START, Scheduler, running_fiber
from simulation.threads import SimulatedCondition, SimulatedExecutor

# Bytes of one request, where an object is copied in several.
COPY_RANGE_BYTES = 16
CPUS = frozenset((0, 1))


class _NoMonitor:
    """Replaces the Monitor; measures nothing."""

    def __init__(self, *_: object) -> None:
        self.peaks = monitor.Peaks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _PatchedModule(ModuleType):
    """A module with some of its names replaced."""

    def __init__(self, real: ModuleType, **names: Any) -> None:
        super().__init__(real.__name__)
        self._real = real
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Current:
    """Holds the scheduler of the scenario that is being simulated."""

    scheduler: Scheduler


_current = _Current()


class _TaskDatetime(datetime):
    """Returns the time of the running task's machine."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        scheduler = _current.scheduler
        fiber = running_fiber()
        ahead = fiber.task.clock_seconds if fiber is not None else 0.0
        return (START + timedelta(seconds=scheduler.now + ahead)).astimezone(tz)


def _random_bits(bits: int) -> int:
    return _current.scheduler.rng.getrandbits(bits)


def _replacements() -> dict[int, Any]:
    """Return the replacements by the identity of the original."""

    def scheduler() -> Scheduler:
        return _current.scheduler

    def condition(*_: object) -> SimulatedCondition:
        return SimulatedCondition(scheduler())

    return {
        id(time): _PatchedModule(
            time,
            monotonic=lambda: scheduler().now,
            perf_counter=lambda: scheduler().now,
            time=lambda: scheduler().wall_clock(),
            sleep=lambda seconds: scheduler().sleep(seconds),
        ),
        id(random): _PatchedModule(
            random,
            random=lambda: scheduler().rng.random(),
            uniform=lambda low, high: scheduler().rng.uniform(low, high),
        ),
        id(secrets): _PatchedModule(
            secrets,
            token_hex=lambda count=16: f"{_random_bits(8 * count):0{2 * count}x}",
            randbits=_random_bits,
        ),
        id(uuid): _PatchedModule(uuid, uuid4=lambda: uuid.UUID(int=_random_bits(128), version=4)),
        id(secrets.token_hex): lambda count=16: f"{_random_bits(8 * count):0{2 * count}x}",
        id(uuid.uuid4): lambda: uuid.UUID(int=_random_bits(128), version=4),
        id(threading): _PatchedModule(threading, Lock=condition, RLock=condition, Condition=condition),
        id(ThreadPoolExecutor): lambda *args, **kwargs: SimulatedExecutor(scheduler(), *args, **kwargs),
        id(datetime): _TaskDatetime,
        id(codec_of): fake_codec_of,
        id(monitor.Monitor): _NoMonitor,
        id(monitor.check_open_file_limit): lambda *_: None,
        id(monitor.cpu_seconds): lambda: scheduler().now,
    }


# Modules that use datetime as a type in annotations and models, not as a clock.
_DATETIME_AS_TYPE = ("streams", "layout", "protocol")


@contextmanager
def simulated(
    scheduler: Scheduler, copies_up_to: int | None = None, library: Library | None = None
) -> Iterator[None]:
    """Let the pipeline's modules use the scheduler's time, random numbers and threads, and the fake codec.

    :param copies_up_to: the most bytes that S3 copies in one request; None for 5 GiB
    :param library: of the fake codec; None if nothing is compressed
    """
    _current.scheduler = scheduler
    changed: list[tuple[ModuleType, str, Any]] = []
    values: list[tuple[ModuleType, str, Any]] = []
    # Several batches of deletes, and rounds of parts.
    values += [(expire_hour, "BATCH_OBJECTS", 2), (expire_hour, "_ROUND_PARTS", 2)]
    if copies_up_to is not None:
        values += [
            (packer, "LARGEST_COPY_BYTES", copies_up_to),
            (packer, "COPY_RANGE_BYTES", COPY_RANGE_BYTES),
        ]
    if library is not None:
        FakeCodec.library = library
        values += [
            (compression, "FRAME_BYTES", library.frame_bytes),
            (compression, "LARGEST_FRAME_BYTES", library.largest_frame_bytes),
            (compression, "PLANNED_RATIO", library.ratio),
            # A scenario must not depend on the machine's number of CPUs.
            (packer, "os", _PatchedModule(os, sched_getaffinity=lambda _: CPUS)),
        ]
    for module, name, value in values:
        changed.append((module, name, getattr(module, name)))
        setattr(module, name, value)
    for module in _modules():
        for name, replacement in _replacements_of(module):
            changed.append((module, name, getattr(module, name)))
            setattr(module, name, replacement)
    try:
        yield
    finally:
        for module, name, original in changed:
            setattr(module, name, original)


class _Cache:
    """The pipeline's modules, and the replacements in each; the same for all scenarios of a process."""

    modules: Sequence[ModuleType] = ()
    replacements: dict[str, Sequence[tuple[str, Any]]] = {}  # noqa: RUF012


def _modules() -> Sequence[ModuleType]:
    if not _Cache.modules:
        _Cache.modules = [
            importlib.import_module(found.name)
            for found in pkgutil.walk_packages(pipeline.__path__, f"{pipeline.__name__}.")
            if not found.name.endswith(".monitor")
        ]
    return _Cache.modules


def _replacements_of(module: ModuleType) -> Sequence[tuple[str, Any]]:
    found = _Cache.replacements.get(module.__name__)
    if found is None:
        replacements = _replacements()
        short = module.__name__.rpartition(".")[2]
        found = [
            (name, replacements[id(value)])
            for name, value in vars(module).items()
            if id(value) in replacements and not (value is datetime and short in _DATETIME_AS_TYPE)
        ]
        _Cache.replacements[module.__name__] = found
    return found
