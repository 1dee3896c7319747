"""A limit on a process's memory that really limits: resident pages, buffers shared or private, all of it.

RLIMIT_AS counts addresses and not memory, RLIMIT_DATA no shared mapping, and RLIMIT_RSS does nothing on Linux
(setrlimit(2)); the memory controller of control groups counts what is used, and kills at the limit.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY_CONTROLLER = Path("/sys/fs/cgroup/memory")


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path | None]:
    """A control group (version 1) of memory, for processes to put themselves into; None where there is none.

    It must be empty again when the block ends.
    """
    group = MEMORY_CONTROLLER / f"log-rollup-test-{uuid.uuid4().hex[:12]}"
    if not os.access(MEMORY_CONTROLLER / "cgroup.procs", os.W_OK):
        yield None
        return
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield group
    finally:
        group.rmdir()


def peak_bytes(group: Path) -> int:
    """The most memory that the group has used, caches of files included."""
    return int((group / "memory.max_usage_in_bytes").read_text())
