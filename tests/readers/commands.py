"""The commands that read parts; root on a Debian system also installs their packages."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.readers.libraries import documents, ids_of
from tests.support.debian import program

PACKAGES: Mapping[str, str] = {
    "zcat": "gzip",
    "zstdcat": "zstd",
    "bzcat": "bzip2",
    "xzcat": "xz-utils",
    "lz4cat": "lz4",
    "rg": "ripgrep",
}
"""The Debian package of each command."""
_CAT: Mapping[str, str] = {
    ".gz": "zcat",
    ".zst": "zstdcat",
    ".bz2": "bzcat",
    ".xz": "xzcat",
    ".lz4": "lz4cat",
    ".log": "cat",
}
CAT = "`zcat`, `zstdcat`, `bzcat`, `xzcat`, `lz4cat`"
RG = "`rg -z`"


def read(reader: str, path: Path) -> dict[str, Any]:
    """Return what a command found in a part: ``ids`` or ``error``.

    :param reader: :data:`CAT` or :data:`RG`
    """
    search = ["rg", "-z", "--no-filename", "--no-line-number", '"id"']
    command = [_CAT[path.suffix]] if reader == CAT else search
    done = subprocess.run([*command, path], capture_output=True, text=True)
    if done.returncode or done.stderr:
        return {"error": f"exit code {done.returncode}: {done.stderr}"}
    return {"ids": ids_of(list(documents(done.stdout)))}


def versions() -> list[str]:
    """The version of each command's package, after installing what is missing.

    :raises tests.support.debian.MissingProgramError: if a command is missing and cannot be installed
    """
    found = []
    for command, package in PACKAGES.items():
        # bzip2 has no --version that ends without input.
        path = program({"zcat": "gzip", "bzcat": "bzip2"}.get(command, command), package)
        flag = "--help" if package == "bzip2" else "--version"
        done = subprocess.run([path, flag], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        number = re.search(r"[0-9]+\.[0-9.]*[0-9]", done.stdout + done.stderr)
        found.append(f"{package} {number[0] if number else '?'}")
    return found
