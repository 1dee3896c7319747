"""Programs of the machine that tests need: found, or installed from Debian's packages where that may be done."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

_INSTALL_SECONDS = 600


class MissingProgramError(Exception):
    """A program is not there and could not be installed; the message says how to."""


def program(name: str, package: str, folders: str = "") -> Path:
    """The path of a program.

    :param name: of the program, or of a library
    :param package: of Debian's that brings it
    :param folders: pattern below the root of the folders to look into before ``PATH``; the last of several counts
    :raises MissingProgramError: if it is not there, and this is not root on a system with apt-get
    """
    found = _find(name, folders) or (_find(name, folders) if _install(package) else None)
    if found is None:
        raise MissingProgramError(f"{name} is missing: apt-get install {package}")
    return found


def program_or_skip(name: str, package: str, folders: str = "") -> Path:
    """The same, for a test that is skipped without the program."""
    try:
        return program(name, package, folders)
    except MissingProgramError as error:
        pytest.skip(str(error))


def _find(name: str, folders: str) -> Path | None:
    beside = sorted(Path("/").glob(f"{folders}/{name}")) if folders else []
    on_path = shutil.which(name)
    return beside[-1] if beside else Path(on_path) if on_path else None


@cache
def _install(package: str) -> bool:
    """Whether a package could be installed."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    quietly = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", package]):
        done = subprocess.run(
            ["apt-get", *command], env=quietly, capture_output=True, timeout=_INSTALL_SECONDS
        )
        if done.returncode != 0:
            return False
    return True
