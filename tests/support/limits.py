"""Limits the memory of processes by a control group, which counts all memory in use and kills at the limit.

Resource limits don't do that (setrlimit(2)): RLIMIT_AS counts addresses, RLIMIT_DATA omits shared mappings, and
RLIMIT_RSS has no effect on Linux.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY_CONTROLLER = Path("/sys/fs/cgroup/memory")


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path | None]:
    """A memory control group (version 1) that processes can join; None if this machine has no such controller.

    All its processes must have ended when the block ends.
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
    """The most memory that the group has used, in bytes, including file caches."""
    return int((group / "memory.max_usage_in_bytes").read_text())
