"""The page Hours in Airflow's UI, in a real browser, with an hour that a real Airflow has rolled up."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser, FrameLocator, Locator, Page, ViewportSize, expect

from dev.stack.paths import BUCKET
from include.log_rollup.hour.layout import floor_hour, format_hour
from tests.support.browser import patient_context, running_browser
from tests.support.raw_hours import hour_prefix, make_hour
from tests.system.running import APP, Running

SMALL = "log_rollup_small"
OBJECTS = 12
PAGE = "/log-rollup/hours/"
WIDE: ViewportSize = {"width": 1280, "height": 900}
NARROW: ViewportSize = {"width": 360, "height": 740}


@dataclass(frozen=True)
class MadeHour:
    """An hour of the stream ``small`` that a manual run has rolled up."""

    name: str
    run_id: str

    @property
    def address(self) -> str:
        """The address of its page."""
        return f"{PAGE}?stream=small&hour={self.name}"

    @property
    def month(self) -> str:
        """The address of its month."""
        return f"{PAGE}?stream=small&month={self.name[:7]}"


OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def made(running: Running) -> MadeHour:
    """The only hour of its month; rolled up after the catchup, so that the two don't compete."""
    running.finished_run(APP, running.dataset.hours[-1].hour)
    # Near the first hour of its month, as the keyboard moves hour by hour.
    hour = floor_hour(datetime.now(UTC) - timedelta(days=40)).replace(day=3, hour=2)
    make_hour(running.client, BUCKET, hour_prefix("raw/small/", hour), objects=OBJECTS)
    run_id = running.trigger(SMALL, {"hour": format_hour(hour)})
    assert running.ended(SMALL, run_id).state == "success"
    return MadeHour(format_hour(hour), run_id)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as found:
        yield found


@contextmanager
def opened_pages(browser: Browser, running: Running) -> Iterator[OpenPage]:
    """Open paths of Airflow's UI: ``open_page(path, viewport)``. The page Hours must log no error."""
    errors: list[str] = []
    contexts = []

    def note(text: str, place: str) -> None:
        if PAGE in place:
            errors.append(text)

    def open_it(path: str, viewport: ViewportSize = WIDE) -> Page:
        context = patient_context(browser, viewport=viewport, base_url=running.stack.addresses.ui_url)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: note(str(error), error.stack or ""))
        page.on(
            "console", lambda line: note(line.text, line.location["url"]) if line.type == "error" else None
        )
        page.goto(path)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def open_page(browser: Browser, running: Running) -> Iterator[OpenPage]:
    with opened_pages(browser, running) as open_it:
        yield open_it


@pytest.fixture(scope="module")
def in_airflow(browser: Browser, running: Running, made: MadeHour) -> Iterator[Page]:
    """The hour in Airflow's UI, reached through the navigation; the UI takes seconds to load."""
    with opened_pages(browser, running) as open_it:
        page = open_it("/")
        page.get_by_role("link", name="Hours", exact=True).click()
        expect(hours_of(page).get_by_role("grid")).to_be_visible()
        (frame,) = page.main_frame.child_frames
        frame.goto(made.address)
        yield page


def hours_of(page: Page) -> FrameLocator:
    """The page Hours within Airflow's."""
    return page.frame_locator("iframe[title='Hours']")


def cell_of(page: Page, hour: MadeHour) -> Locator:
    """The hour in the calendar."""
    return page.locator(f'a.hour[data-key="{hour.name}"]')


def test_calendar_shows_what_the_marker_says(made: MadeHour, open_page: OpenPage) -> None:
    page = open_page(made.month)
    cell = cell_of(page, made)
    expect(cell).to_have_attribute("data-state", "complete")
    expect(cell).to_have_attribute(
        "aria-label", re.compile(rf"UTC: Complete, {OBJECTS} objects, .* in \d+ parts")
    )
    expect(page.locator(".legend li").first).to_have_text("Complete 1")
    expect(page.locator(".age")).to_contain_text("Bucket read")
    assert page.locator("a.hour").count() % 24 == 0
    charts = page.get_by_role("img")
    expect(charts).to_have_count(6)
    expect(charts.first).to_have_attribute(
        "aria-label", f"Objects of 1 hours: median {OBJECTS}, maximum {OBJECTS}"
    )


def test_keyboard_reaches_an_hour_and_returns(made: MadeHour, open_page: OpenPage) -> None:
    page = open_page(made.month)
    expect(cell_of(page, made)).to_have_attribute("data-state", "complete")
    page.keyboard.press("Tab")
    # The calendar is one tab stop; arrow keys move within it.
    page.locator("a.hour[tabindex='0']").focus()
    expect(page.locator("a.hour[tabindex='0']")).to_have_count(1)
    page.keyboard.press("Control+Home")
    expect(page.locator("a.hour:focus")).to_have_attribute("data-key", f"{made.name[:7]}-01T00:00:00Z")
    day, hour = int(made.name[8:10]), int(made.name[11:13])
    for key, times in (("ArrowDown", day - 1), ("ArrowRight", hour)):
        for _ in range(times):
            page.keyboard.press(key)
    expect(cell_of(page, made)).to_be_focused()
    expect(page.locator(".tip")).to_contain_text(f"{OBJECTS} objects")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(f"{made.name[11:16]}–")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(cell_of(page, made)).to_be_visible()


def test_hour_shows_its_parts_proofs_and_shards(
    running: Running, made: MadeHour, open_page: OpenPage
) -> None:
    page = open_page(made.address)
    expect(page.locator(".chip").first).to_have_text("Complete")
    expect(page.locator("dl").first).to_contain_text(f"Raw objects{OBJECTS}")
    parts = page.locator("tr", has=page.locator("code", has_text="part-0"))
    expect(parts.first).to_contain_text("part-00000-")
    listed = running.client.list_objects_v2(
        Bucket=BUCKET, Prefix=hour_prefix("aggregated/small/", datetime.fromisoformat(made.name)) + "part-"
    )["Contents"]
    expect(parts).to_have_count(len(listed))
    expect(page.locator(".proven")).to_have_count(len(listed))
    expect(page.get_by_role("link", name="pack_shard[0]")).to_be_visible()
    expect(page.locator("table", has_text="Shard")).to_contain_text(re.compile(r"part.*: \d+ objects"))
    expect(page.locator(".place").first).to_contain_text(f"s3://{BUCKET}/raw/small/")
    # The S3 server does not belong to AWS.
    expect(page.get_by_text("AWS console")).to_have_count(0)


def test_page_in_the_ui_follows_its_theme_and_address(in_airflow: Page) -> None:
    frame = hours_of(in_airflow)
    for theme in ("dark", "light"):
        # As Airflow's own menu does.
        in_airflow.evaluate("theme => localStorage.setItem('theme', theme)", theme)
        expect(frame.locator("html")).to_have_attribute("data-theme", theme)
    # Airflow's own address follows, so that users can share it.
    expect(in_airflow).to_have_url(re.compile(rf"/plugin/log-rollup-hours{PAGE}\?stream=small&hour="))
    in_airflow.reload()
    expect(frame.locator(".chip").first).to_have_text("Complete")


def test_clear_asks_first_and_unchanged_hour_stays_complete(
    running: Running, made: MadeHour, in_airflow: Page
) -> None:
    def clear_number() -> int:
        path = f"/dags/{SMALL}/dagRuns/{made.run_id}/taskInstances/wait_for_raw_hour"
        return int(running.stack.api.request("GET", path)["try_number"])

    frame = hours_of(in_airflow)
    ask = frame.get_by_role("button", name="Clear the run …")
    ask.click()
    dialog = frame.get_by_role("dialog")
    expect(dialog).to_contain_text(re.compile(r"\d+ task instances will be cleared"))
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    assert clear_number() == 1
    ask.click()
    dialog.get_by_role("button", name="Clear the run", exact=True).click()
    expect(dialog).to_have_count(0)
    running.wait_for("the cleared run at work", lambda: clear_number() == 2)
    assert running.ended(SMALL, made.run_id).state == "success"
    expect(frame.locator(".chip").first).to_have_text("Complete")


def test_hour_links_to_its_run(made: MadeHour, in_airflow: Page) -> None:
    hours_of(in_airflow).get_by_role("link", name="Open the run").click()
    in_airflow.wait_for_url(f"**/dags/{SMALL}/runs/*")
    assert unquote(in_airflow.url).endswith(f"/runs/{made.run_id}")


def test_nothing_is_cut_off_in_a_narrow_window(made: MadeHour, open_page: OpenPage) -> None:
    for path, shown in ((made.month, "table.calendar"), (made.address, "table.rows")):
        page = open_page(path, NARROW)
        expect(page.locator(shown).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_page_reports_wrong_arguments(running: Running, browser: Browser) -> None:
    page = browser.new_page(base_url=running.stack.addresses.ui_url)
    for query, message in (
        ("stream=nosuch", "no stream nosuch"),
        ("stream=small&month=soon", "write it like 2026-11"),
    ):
        page.goto(f"{PAGE}?{query}")
        expect(page.get_by_role("alert")).to_contain_text(message)
    page.close()
