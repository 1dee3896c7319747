"""Builds the files for Amazon MWAA: dags/, plugins.zip, requirements.txt and startup.sh.

    python -m deploy.mwaa TARGET [--python 3.12]

MWAA unpacks plugins.zip into its plugins folder, which is on sys.path, unlike a project root. So plugins.zip
contains `include` next to the plugin. docs/DEPLOY.md explains the upload.
"""

import argparse
import re
import shutil
import sys
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# https://docs.aws.amazon.com/mwaa/latest/userguide/configuring-dag-import-plugins.html
MWAA_DAGS = "/usr/local/airflow/dags"
# Modules that Airflow must not load as plugins.
IGNORED = ("log_rollup_plugin/*", "include/*")
# A fixed date, so that equal code gives an equal zip and MWAA sees a new version only if the code changed.
_DATE = (1980, 1, 1, 0, 0, 0)

_REQUIREMENTS = """\
# MWAA requires constraints, those of the environment's Airflow and Python:
# https://docs.aws.amazon.com/mwaa/latest/userguide/working-dags-dependencies.html
--constraint "https://raw.githubusercontent.com/apache/airflow/constraints-{airflow}/constraints-{python}.txt"
"""

_STARTUP = """\
#!/bin/sh
# The streams file is next to the Dags: changing it takes an upload, but no update of the environment.
export LOG_ROLLUP_STREAMS={dags}/streams.yaml
"""


def build(target: Path, python: str) -> list[Path]:
    """Replace `target` with a directory of all files, and return their paths.

    :param python: Python version of the MWAA environment, such as `3.12`
    """
    if target.exists():
        shutil.rmtree(target)
    dags = target / "dags"
    dags.mkdir(parents=True)
    for path in (PROJECT / "dags").glob("*.py"):
        shutil.copy(path, dags)
    shutil.copy(PROJECT / "include" / "streams.yaml", dags)
    _write_plugins(target / "plugins.zip")
    head = _REQUIREMENTS.format(airflow=_locked_airflow(), python=python)
    (target / "requirements.txt").write_text("\n".join([head.rstrip(), *_requirements_without_airflow(), ""]))
    (target / "startup.sh").write_text(_STARTUP.format(dags=MWAA_DAGS))
    return sorted(path for path in target.rglob("*") if path.is_file())


def _write_plugins(target: Path) -> None:
    sources = [PROJECT / "plugins", PROJECT / "include"]
    members = {
        path.relative_to(PROJECT).as_posix().removeprefix("plugins/"): path.read_bytes()
        for source in sources
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    members[".airflowignore"] = "\n".join([*IGNORED, ""]).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # Readable for all users: MWAA unpacks the file as another user.
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, members[name])


def _requirements_without_airflow() -> list[str]:
    """Return the lines of requirements.in without Airflow itself, which MWAA provides."""
    lines = (PROJECT / "requirements.in").read_text().splitlines()
    return [line for line in lines if not line.startswith(("#", "apache-airflow=="))]


def _locked_airflow() -> str:
    lock = (PROJECT / "requirements.txt").read_text()
    match = re.search(r"^apache-airflow==(\S+)", lock, re.MULTILINE)
    if match is None:
        raise ValueError("requirements.txt has no apache-airflow")
    return match[1]


def main() -> int:
    """Build the files and print their paths and sizes."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.mwaa", description="Build the files for Amazon MWAA."
    )
    parser.add_argument("target", type=Path, help="directory to write; an existing one is replaced")
    parser.add_argument("--python", default="3.12", help="Python of the MWAA environment (default: 3.12)")
    options = parser.parse_args()
    for path in build(options.target, options.python):
        print(f"{path} ({path.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
