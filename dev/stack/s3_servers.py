"""The S3 servers of the local stack: how to start each, and where it keeps its objects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.stack.environment import REGION, Secrets
from dev.stack.paths import PROJECT, StackPaths

MINISTACK_PROGRAM = PROJECT / "dev" / "stack" / "ministack_server.py"
RCLONE = "rclone"
MINISTACK = "ministack"
MOTO = "moto"


class MissingProgramError(Exception):
    """The program of a server is missing; the message says how to install it."""


@dataclass(frozen=True)
class LocalS3:
    """One S3 server.

    :param title: its name in messages
    :param in_memory: whether it loses its objects when it ends; otherwise they are files below `StackPaths.s3`
    :param command: returns the command line that serves S3 on a port of 127.0.0.1
    :param settings: returns the variables that it needs in addition to a clean environment, for the same port
    """

    title: str
    in_memory: bool
    command: Callable[[StackPaths, int], list[str]]
    settings: Callable[[StackPaths, int, Secrets], dict[str, str]]


def _rclone_command(paths: StackPaths, port: int) -> list[str]:
    rclone = Path(sys.executable).parent / "rclone"
    if not rclone.exists():
        raise MissingProgramError(
            f"{rclone} is missing, the environment is not complete: delete .venv and run make again"
        )
    # No configuration file of the user, no cache on disk. Reads cost a third of the CPU time without rclone's own
    # check (--no-checksum); the Dag checks everything that it reads.
    return [
        *(str(rclone), "serve", "s3", str(paths.s3), "--config", ""),
        *("--addr", f"127.0.0.1:{port}", "--cache-dir", str(paths.cache)),
        *("--vfs-cache-mode", "off", "--no-checksum", "--buffer-size", "0"),
    ]


def _rclone_settings(_paths: StackPaths, _port: int, keys: Secrets) -> dict[str, str]:
    # Not as --auth-key: other users of the machine can see command lines.
    return {"RCLONE_AUTH_KEY": f'"{keys.s3_access_key},{keys.s3_secret_key}"'}


def _ministack_command(_paths: StackPaths, _port: int) -> list[str]:
    return [sys.executable, "-I", str(MINISTACK_PROGRAM)]


def _ministack_settings(paths: StackPaths, port: int, _keys: Secrets) -> dict[str, str]:
    # All settings for addresses and files, defaults included: the user's environment may have other values.
    return {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "USE_SSL": "0",
        "MINISTACK_REGION": REGION,
        "SERVICES": "s3",
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "PERSIST_STATE": "0",
        "S3_PERSIST": "0",
        "LOCALSTACK_PERSISTENCE": "0",
        "TMPDIR": str(paths.state),
        # MiniStack removes containers with its label when it starts and ends: hide Docker from it.
        "DOCKER_HOST": f"unix://{paths.state / 'no-docker.sock'}",
    }


def _moto_command(_paths: StackPaths, port: int) -> list[str]:
    return [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]


def _no_settings(_paths: StackPaths, _port: int, _keys: Secrets) -> dict[str, str]:
    return {}


SERVERS: Mapping[str, LocalS3] = {
    RCLONE: LocalS3("rclone", False, _rclone_command, _rclone_settings),
    MINISTACK: LocalS3("MiniStack", True, _ministack_command, _ministack_settings),
    MOTO: LocalS3("moto", True, _moto_command, _no_settings),
}
"""The servers by their name in `--s3` and `make demo S3=`."""
