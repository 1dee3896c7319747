"""Finds programs that tests need; root on a Debian system also installs them."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

_INSTALL_SECONDS = 600


class MissingProgramError(Exception):
    """A program is missing and could not be installed; the message says how to install it."""


def program(name: str, package: str, folders: str = "") -> Path:
    """Return the path of a program; install its package if it is missing and this is root.

    :param name: name of the program or library
    :param package: the Debian package that contains it
    :param folders: glob pattern, relative to ``/``, of folders to search before ``PATH``; the last match is used
    :raises MissingProgramError: if it is missing and cannot be installed
    """
    found = _find(name, folders) or (_find(name, folders) if _install(package) else None)
    if found is None:
        raise MissingProgramError(f"{name} is missing: apt-get install {package}")
    return found


def program_or_skip(name: str, package: str, folders: str = "") -> Path:
    """Return the same as :func:`program`; skip the test if the program is missing."""
    try:
        return program(name, package, folders)
    except MissingProgramError as error:
        pytest.skip(str(error))


def _find(name: str, folders: str) -> Path | None:
    in_folders = sorted(Path("/").glob(f"{folders}/{name}")) if folders else []
    on_path = shutil.which(name)
    return in_folders[-1] if in_folders else Path(on_path) if on_path else None


@cache
def _install(package: str) -> bool:
    """Install a package; return whether that succeeded."""
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
