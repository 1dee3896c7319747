"""The environment variables of the stack's processes: its own settings, and none of the user's."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dev.stack.paths import StackPaths, read_json, write_json

REGION = "us-east-1"
# Variables of the user that would change the stack: other credentials, another database, another bucket, modules
# of another interpreter.
_REMOVED_PREFIXES = ("AWS_", "AIRFLOW_", "BOTO_", "RCLONE_", "LOG_ROLLUP_", "PYTHON", "VIRTUAL_ENV", "UV_")


@dataclass(frozen=True)
class Secrets:
    """Keys generated for one state directory and valid nowhere else."""

    s3_access_key: str
    s3_secret_key: str
    fernet_key: str
    api_secret_key: str
    jwt_secret: str


@dataclass(frozen=True)
class Addresses:
    """The ports of 127.0.0.1 on which the stack listens."""

    ui_port: int
    s3_port: int

    @property
    def ui_url(self) -> str:
        """Address of Airflow's UI and REST API."""
        return f"http://127.0.0.1:{self.ui_port}"

    @property
    def s3_endpoint(self) -> str:
        """Address of the S3 server; it takes path-style requests."""
        return f"http://127.0.0.1:{self.s3_port}"


@dataclass(frozen=True)
class AirflowFolders:
    """What Airflow loads: the project root for imports, the Dags, the plugins, the streams file."""

    project: Path
    dags: Path
    plugins: Path
    streams: Path


def load_secrets(paths: StackPaths) -> Secrets:
    """Return the keys of this state directory; the first call generates them in a file only the user can read."""
    record = read_json(paths.secrets)
    if record is not None:
        return Secrets(**record)
    made = Secrets(
        s3_access_key="demo" + secrets.token_hex(8),
        s3_secret_key=secrets.token_hex(20),
        fernet_key=base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        api_secret_key=secrets.token_hex(16),
        jwt_secret=secrets.token_hex(32),
    )
    write_json(paths.secrets, asdict(made), mode=0o600)
    return made


def clean_environment(ambient: Mapping[str, str]) -> dict[str, str]:
    """Return `ambient` without the variables that would change the stack, and with no proxy for loopback."""
    env = {name: value for name, value in ambient.items() if not name.startswith(_REMOVED_PREFIXES)}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), ambient.get("PATH", os.defpath)])
    # On macOS a forked process crashes when it looks up the system's proxies, unless all hosts are exempt
    # (https://bugs.python.org/issue30385). The stack only connects to this machine.
    env["NO_PROXY"] = env["no_proxy"] = "*" if sys.platform == "darwin" else "127.0.0.1,localhost"
    if sys.platform == "darwin":
        env["OBJC_DISABLE_INITIALIZE_FORK_SAFETY"] = "YES"
    env["PYTHONUNBUFFERED"] = "1"
    return env


def airflow_environment(
    paths: StackPaths, folders: AirflowFolders, addresses: Addresses, keys: Secrets, parallelism: int
) -> dict[str, str]:
    """Return the variables that every Airflow process of the stack needs in addition to a clean environment.

    :param parallelism: limit of concurrent tasks
    """
    connection = {
        "conn_type": "aws",
        "login": keys.s3_access_key,
        "password": keys.s3_secret_key,
        "extra": {
            "region_name": REGION,
            "endpoint_url": addresses.s3_endpoint,
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        },
    }
    return {
        "PYTHONPATH": str(folders.project),
        "LOG_ROLLUP_STREAMS": str(folders.streams),
        # A client that is built without the connection must find no credentials, neither those in the home
        # directory nor those of the machine's role.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AIRFLOW_HOME": str(paths.airflow_home),
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folders.dags),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(folders.plugins),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(parallelism),
        # SQLite has one writer at a time, and storing Dags takes long on a busy machine. The default is 5 s, after
        # which the scheduler ends.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{paths.airflow_home}/airflow.db?timeout=60",
        # A browser that leaves a page while the API server streams it leaves a cursor open. Its connection would
        # go back to the pool with an old snapshot: later requests would read old rows, and could not write.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_ENABLED": "False",
        "AIRFLOW__CORE__FERNET_KEY": keys.fernet_key,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{addresses.ui_url}/execution/",
        # The default uses DNS, which takes seconds on a laptop outside its network.
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(addresses.ui_port),
        "AIRFLOW__API__BASE_URL": addresses.ui_url,
        "AIRFLOW__API__SECRET_KEY": keys.api_secret_key,
        "AIRFLOW__API_AUTH__JWT_SECRET": keys.jwt_secret,
        # Find new Dag files after 10 s; the default is 5 minutes.
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        # The server shares the cores with the tasks, and may wait for SQLite; the default timeout is 5 s.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "90",
        # After `down` and `up`, retry interrupted tasks after one minute; the default is five.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
