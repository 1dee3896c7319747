"""A headless Chromium, that of the machine: nothing is downloaded but Debian's own package, where that may be."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# In a container there is no sandbox of its own to be had; and nothing is to leave the machine.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@cache
def find_chromium() -> str | None:
    """The path of Chromium, which is installed where it is missing and that is possible; None if it is not."""
    found = _on_path()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quietly = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            if subprocess.run(["apt-get", *command], env=quietly, capture_output=True).returncode:
                return None
        found = _on_path()
    return found


def _on_path() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser with a profile of its own; the test is skipped where there is no Chromium."""
    path = find_chromium()
    if path is None:
        pytest.skip("there is no Chromium: install it (on Debian: apt-get install chromium) and run again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
