"""A headless Chromium, that of the machine: nothing is downloaded but Debian's own package, where that may be."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.support.debian import program_or_skip

# In a container there is no sandbox of its own to be had; and nothing is to leave the machine.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser with a profile of its own; the test is skipped where there is no Chromium."""
    path = program_or_skip("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
