"""Dependencies point one way: the pipeline imports neither Airflow nor boto3 nor the plugin."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.log_rollup.streams import INCLUDE

FORBIDDEN = ("airflow", "boto3", "botocore", "log_rollup_plugin", "dags", "tests")
ROOT = INCLUDE.parent
DEVELOPMENT = frozenset({"dev", "benchmarks", "simulation", "tests"})
# What the files of each folder must not import, also inside functions.
NOT_IMPORTED_BY = {
    **dict.fromkeys(("dags", "plugins", "include", "deploy", "examples"), DEVELOPMENT),
    **dict.fromkeys(("dev", "benchmarks", "simulation"), frozenset({"tests"})),
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
    found = {str(file.relative_to(ROOT)): set(top_level_imports(file)) for file in files}
    assert {name for name, imported in found.items() if imported & NOT_IMPORTED_BY[folder]} == set()


def top_level_imports(file: Path) -> Iterator[str]:
    """Yield the top-level package of every import in a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
