"""Dependencies point one way: the pipeline imports neither Airflow nor boto3 nor the plugin."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from include.log_rollup.streams import INCLUDE

FORBIDDEN = ("airflow", "boto3", "botocore", "log_rollup_plugin", "dags", "tests")
ROOT = INCLUDE.parent
DEVELOPMENT = frozenset({"dev", "benchmarks", "simulation", "tests"})
PRODUCTION = ("dags", "plugins", "include", "deploy")
# What the files of each folder must not import, also inside functions.
NOT_IMPORTED_BY = {
    **dict.fromkeys(PRODUCTION, DEVELOPMENT | {"examples"}),
    "examples": DEVELOPMENT,
    **dict.fromkeys(("dev", "benchmarks", "simulation"), frozenset({"tests"})),
}
PIPELINE = "include.log_rollup."
# Packages of the pipeline, and what each may import: packages, or modules of other packages. Modules outside of
# packages, except `streams`, import only each other.
LAYERS = {
    "": {""},
    "storage": {"", "storage"},
    "streams": {
        "",
        "storage.protocol",
        "hour.layout",
        "hour.overlap",
        "hour.plan",
        "hour.paths",
        "hour.selection",
        "hour.template",
        "hour.local_hours",
    },
    "hour": {"", "storage", "streams", "hour"},
    "steps": {"", "storage", "streams", "hour", "steps"},
    "queries": {"", "storage", "streams", "hour", "queries"},
}
# No step imports another one; what only pack_shard uses are modules of their own.
STEPS = {"wait_for_raw_hour", "plan_hour", "pack_shard", "validate_hour", "complete_hour", "expire_hour"}
PACKING = {"packer", "pack_requests", "range_requests", "part_buffers", "recompression", "request_loop"}
# Modules that call a step for many hours.
LOOPS = {"expire_stream": {"expire_hour"}}
# Modules of the pipeline that make locations from a bucket and a key. All others get them from a template or from
# another location, which know whether raw objects are there: see TwoStores.
MAKE_LOCATIONS = {
    "storage.protocol",
    "hour.template",
    "hour.state",
    "queries.object_ends",
    "queries.sample_keys",
}
# Imports every module of the pipeline in a new interpreter, and prints which packages were imported.
PROBE = """
import importlib, pkgutil, sys
import include.log_rollup as pipeline
for module in pkgutil.walk_packages(pipeline.__path__, "include.log_rollup."):
    importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_pipeline_imports_no_airflow_boto3_or_plugin() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=INCLUDE.parent, capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.split())
    assert "include" in imported
    assert imported.isdisjoint(FORBIDDEN)


def test_tasks_do_not_import_the_web_framework() -> None:
    probe = (
        "import sys, log_rollup_plugin.hours_page; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=INCLUDE.parent, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()).isdisjoint({"fastapi", "starlette", "airflow"})


@pytest.mark.parametrize("folder", NOT_IMPORTED_BY)
def test_folder_imports_no_development_code(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): top_level_imports(file) for file in files}
    assert {name for name, imported in found.items() if imported & NOT_IMPORTED_BY[folder]} == set()


def top_level_imports(file: Path) -> set[str]:
    """Return the top-level package of every import in a file."""
    return {name.partition(".")[0] for name in imported_names(file)}


@cache
def imported_names(file: Path) -> frozenset[str]:
    """Return the full name of everything that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


@pytest.mark.parametrize("layer", LAYERS)
def test_packages_of_the_pipeline_import_downwards(layer: str) -> None:
    graph = imports_within(ROOT / "include" / "log_rollup", PIPELINE)
    modules = [module for module in graph if layer_of(module) == layer]
    assert modules
    wrong = {
        f"{module} imports {imported}"
        for module in modules
        for imported in graph[module]
        if not {layer_of(imported), imported} & LAYERS[layer]
    }
    assert wrong == set()


def test_steps_do_not_import_each_other() -> None:
    graph = imports_within(ROOT / "include" / "log_rollup", PIPELINE)
    found = {module.removeprefix("steps."): graph[module] for module in graph if layer_of(module) == "steps"}
    assert found.keys() - {"steps"} == STEPS | PACKING | LOOPS.keys()
    for module, imported in found.items():
        steps = {name.removeprefix("steps.") for name in imported if layer_of(name) == "steps"}
        allowed = PACKING if module in {"pack_shard", *PACKING} else LOOPS.get(module, set())
        assert steps <= allowed, module


@pytest.mark.parametrize(
    ("folder", "prefix"),
    [("include/log_rollup", PIPELINE), ("plugins/log_rollup_plugin", "log_rollup_plugin.")],
)
def test_modules_do_not_import_in_circles(folder: str, prefix: str) -> None:
    try:
        TopologicalSorter(imports_within(ROOT / folder, prefix)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def layer_of(module: str) -> str:
    """Return the package of a module of the pipeline; empty for a module outside of packages."""
    package, dot, _ = module.partition(".")
    return package if dot or package in LAYERS else ""


@cache
def imports_within(folder: Path, prefix: str) -> Mapping[str, set[str]]:
    """Return for each module of a package the modules of the same package that it imports, also in functions.

    :param prefix: name of the package, with a dot; it is cut off the names
    """
    files = {
        file.relative_to(folder).with_suffix("").as_posix().removesuffix("/__init__").replace("/", "."): file
        for file in sorted(folder.rglob("*.py"))
    }
    graph = {}
    for module, file in files.items():
        names = {
            f"{name}.".removeprefix(prefix).rstrip(".")
            for name in imported_names(file)
            if f"{name}.".startswith(prefix)
        }
        # A name that is no module is defined in one.
        graph[module] = {name if name in files else name.rpartition(".")[0] for name in names} - {module, ""}
    return graph


def calls_in(file: Path) -> list[ast.Call]:
    """Return the calls in a file."""
    return [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]


def test_only_hour_state_handles_claim_and_marker() -> None:
    owned = {
        "read_claim",
        "write_claim",
        "read_marker",
        "read_removal",
        "write_removal",
        "publish",
        "delete_if",
    }
    for step in sorted(STEPS):
        file = ROOT / "include" / "log_rollup" / "steps" / f"{step}.py"
        names = {call.func.attr for call in calls_in(file) if isinstance(call.func, ast.Attribute)}
        assert names.isdisjoint(owned), step


def test_superseded_error_is_created_in_one_place() -> None:
    creators = [
        file.name
        for file in sorted((ROOT / "include").rglob("*.py"))
        if "SupersededError(" in file.read_text("utf-8")
        for call in calls_in(file)
        if getattr(call.func, "id", "") == "SupersededError"
    ]
    assert creators == ["reader.py"]


def test_locations_come_from_templates() -> None:
    folder = INCLUDE / "log_rollup"
    found = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Location"
    }
    assert found == MAKE_LOCATIONS
