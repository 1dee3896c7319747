"""Runs a headless Chromium: the installed one, or Debian's package."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.support.debian import program_or_skip

# Chromium's toolbar is a web page too. For each window it would take more CPU time than the page of a test.
TOOLBAR_FEATURES = ("InitialWebUI", "WebUIReloadButton", "PreloadTopChromeWebUI")
# Playwright disables these features; Chromium uses only the last list.
PLAYWRIGHT_FEATURES = (
    "AvoidUnnecessaryBeforeUnloadCheckSync", "HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable", "LensOverlay",
    "MediaRouter", "PaintHolding", "ThirdPartyStoragePartitioning", "AvoidCorsURLLoaderRestartOnRedirect",
    "OptimizationHints", "NetworkTimeServiceQuerying", "AimEnabled", "PreconnectToSearch",
    "DestroyProfileOnBrowserClose",
)  # fmt: skip
# Chromium's sandbox does not work in most containers. The other options prevent requests to other machines.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    f"--disable-features={','.join(TOOLBAR_FEATURES + PLAYWRIGHT_FEATURES)}",
]  # fmt: skip


# A page may take long on a machine that is busy with other tests.
PATIENCE_MS = 60_000


def patient_context(browser: Browser, **options: Any) -> BrowserContext:
    """A context that waits longer than the browser's default for elements and pages."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    return context


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a browser with a new profile; skip the test if Chromium is missing and cannot be installed."""
    path = program_or_skip("chromium", "chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
