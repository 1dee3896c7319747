"""The page Hours in a real browser, with rare API responses that the tests make up."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries.hour_detail import FrameStatus, PartStatus
from include.log_rollup.queries.overview import last_hours
from include.log_rollup.queries.status import ExpiredObjects, HourStatus, HourSummary
from include.log_rollup.queries.volume import Comparison, VolumeState
from include.log_rollup.streams import Stream
from log_rollup_plugin.hours_page.app import STATIC
from log_rollup_plugin.hours_page.cost_view import CostFigures, CostView
from log_rollup_plugin.hours_page.database import HourRun, LateHour
from log_rollup_plugin.hours_page.hour_cells import CellStatus
from log_rollup_plugin.hours_page.overview_views import OverviewView, RowView, overview_response
from log_rollup_plugin.hours_page.views import (
    BucketView,
    DetailView,
    FramesView,
    GroupsView,
    HourView,
    MarkerView,
    MonthView,
    PlaceView,
    StreamView,
    groups_view,
    place_views,
    totals_view,
)
from tests.support.browser import patient_context, running_browser
from tests.support.hour_in_memory import make_stream

HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
NOW = HOUR + timedelta(hours=4)
# The host does not exist: the test answers all requests of the page.
PAGE = "http://hours.test/log-rollup/hours/"
ADDRESS = f"{PAGE}?stream=app&hour={format_hour(HOUR)}"
STREAM = StreamView(
    "app", "log_rollup_app", "s3://logs/raw/", "s3://logs/out/", HOUR, 2**25, 25, 4200.0, False
)
PLAIN = make_stream(
    raw=RawTemplate.parse("s3://logs/raw/"), aggregated=AggregatedTemplate.parse("s3://logs/out/")
)
PROBLEM = "s3://logs/out/20261123/08/_SUCCESS: is damaged (<b>objects</b>: field required)"
MARKER: Mapping[str, Any] = {
    "plan_id": "72476eb6ae5830a3a11a", "objects": 300, "bytes_in": 10**8, "separator_bytes": 0, "bytes_out": 10**8,
    "parts": 3, "left_out": {"hidden": 0}, "verified": {"parts": {"read-back": 3}, "objects": {"length": 300}},
    "validated_at": "2026-11-23T09:12:30+00:00", "completed_at": "2026-11-23T09:12:40+00:00",
    "max_connections": 25, "peak": {"sockets": 20, "open_files": 40, "rss_bytes": 2**27},
    "requests": {"GET": 300}, "retries": 0, "throttles": 0, "seconds": {"pack": 3.9, "pack_cpu": 1.0},
}  # fmt: skip

Answers = dict[str, Callable[[Route], None]]
OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as found:
        yield found


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open the page with an answer for each path; fails if a script of the page fails."""
    errors: list[str] = []
    context = patient_context(browser)

    def open_with_answers(address: str, answers: Answers) -> Page:
        def answer(route: Route) -> None:
            path = urlsplit(route.request.url).path.removeprefix(urlsplit(PAGE).path)
            if path in answers:
                answers[path](route)
            elif path == "api/streams":
                route.fulfill(json=to_json({"streams": [asdict(STREAM)], "now": NOW}))
            else:
                route.fulfill(path=STATIC / (path.removeprefix("static/") or "index.html"))

        context.route(f"{PAGE}**", answer)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_with_answers
    context.close()
    assert errors == []


def to_json(value: Any) -> Any:
    """Convert to types that JSON has."""
    if isinstance(value, datetime):
        return format_hour(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


def detail(
    state: CellStatus,
    why: str = "",
    marker: Mapping[str, Any] | None = None,
    groups: GroupsView | None = None,
    stream: Stream = PLAIN,
    hour: datetime = HOUR,
    parts_of_hour: Sequence[PartStatus] = (),
) -> Any:
    """Return the response of the API for an hour."""
    raw, parts, records = place_views(stream, hour, None)
    view = DetailView(
        STREAM, format_hour(hour), NOW, state, why, marker, parts_of_hour, None, why, (), (), None, raw, parts, "",
        False, groups=groups, records=records, parts_found=len(parts_of_hour),
    )  # fmt: skip
    return to_json(asdict(view))


HOUR_PATH = f"api/streams/app/hours/{format_hour(HOUR).replace(':', '%3A')}"


def test_refused_page_shows_the_reason_and_retries(open_page: OpenPage) -> None:
    requests = []

    def busy_twice(route: Route) -> None:
        requests.append(route)
        if len(requests) > 2:
            route.fulfill(json=detail(CellStatus.COMPLETE, marker=MARKER))
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"detail": "too many hours"})

    page = open_page(ADDRESS, {HOUR_PATH: busy_twice})
    expect(page.locator(".notice")).to_contain_text("too many hours")
    expect(page.locator("dl").first).to_contain_text("Raw objects300", timeout=20_000)
    expect(page.locator(".notice")).to_have_count(0)
    assert len(requests) == 3


def test_damaged_hour_shows_problem_and_fix(open_page: OpenPage) -> None:
    page = open_page(
        ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=detail(CellStatus.DAMAGED, PROBLEM))}
    )
    expect(page.locator(".chip").first).to_have_text("Damaged")
    expect(page.locator(".why")).to_have_text(PROBLEM)
    expect(page.get_by_text("Clear the run. plan_hour")).to_be_visible()
    assert page.get_by_text(PROBLEM).count() == 1


def test_future_hour_is_not_to_be_triggered(open_page: OpenPage) -> None:
    for hour, text in (
        (NOW + timedelta(hours=2), "Nothing. Its run"),
        (NOW - timedelta(days=9), "trigger the Dag"),
    ):
        path = f"api/streams/app/hours/{format_hour(hour).replace(':', '%3A')}"
        answer = detail(CellStatus.NONE, "why", hour=hour)
        page = open_page(
            f"{PAGE}?stream=app&hour={format_hour(hour)}",
            {path: lambda route, answer=answer: route.fulfill(json=answer)},
        )
        expect(page.locator(".advice")).to_contain_text(text)


@pytest.mark.parametrize(
    ("state", "text"),
    [("running", "The hour is being rerun."), ("failed", "If that has failed"), (None, "or not begun")],
)
def test_late_hour_is_being_rerun_only_while_a_run_works(
    open_page: OpenPage, state: str | None, text: str
) -> None:
    run = HourRun("late__x", HOUR, state or "", "operator_triggered", NOW, NOW, None, NOW)
    found = LateHour(NOW, rerun=True, late=3, changed=0, vanished=0)
    answer = detail(CellStatus.COMPLETE, marker=MARKER) | {
        "late": to_json(asdict(found)), "runs": to_json([asdict(run)] if state else [])
    }  # fmt: skip
    page = open_page(ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=answer)})
    card = page.locator("section.card", has=page.get_by_role("heading", name="Late objects"))
    expect(card.locator("p")).to_contain_text(text)


def test_calendar_lists_damaged_hours_for_attention(open_page: OpenPage) -> None:
    hours = [
        HourView(
            format_hour(HOUR.replace(day=1, hour=0) + timedelta(hours=number)),
            CellStatus.NONE,
            "",
            None,
            None,
            None,
        )
        for number in range(30 * 24)
    ]
    hours[22 * 24 + 8] = HourView(format_hour(HOUR), CellStatus.DAMAGED, PROBLEM, None, None, None)
    month = to_json(asdict(MonthView(STREAM, "2026-11", NOW, hours, BucketView(NOW, NOW, 0, ""))))
    page = open_page(
        f"{PAGE}?stream=app&month=2026-11", {"api/streams/app/hours": lambda route: route.fulfill(json=month)}
    )
    expect(page.locator(f'a.hour[data-key="{format_hour(HOUR)}"]')).to_have_attribute("data-state", "damaged")
    expect(page.locator(".legend")).to_contain_text("Damaged 1")
    expect(page.locator(".attention")).to_contain_text(PROBLEM)


@pytest.mark.parametrize(("foreign", "damaged"), [(None, None), (0, 0), (3, 0), (0, 2), (1234, 1)])
def test_foreign_and_damaged_objects_are_shown_unless_none(
    open_page: OpenPage, foreign: int | None, damaged: int | None
) -> None:
    marker = {**MARKER, "foreign": foreign, "damaged": damaged}
    page = open_page(
        ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=detail(CellStatus.COMPLETE, marker=marker))}
    )
    facts = page.locator("dl").first
    expect(facts).to_contain_text("Left out")
    for count, name in ((foreign, "Foreign objects"), (damaged, "Damaged objects")):
        if count:
            expect(facts).to_contain_text(re.compile(f"{name}{count:,} "))
        else:
            expect(facts).not_to_contain_text(name)


# -- compression ---------------------------------------------------------------------------------------

COMPRESSED = {**MARKER, "bytes_stored": 10_400_000}
NAME = "part-00000-5c926672.log.zst"
PARTS = [
    PartStatus(NAME, 10_300_000, 298, False, "3e0e83772713e5e0", "read-back", 2345, 99_000_000),
    PartStatus("part-00001-e6e65796.log.gz", 100_000, 2, False, "e37175990bce8ec3", "read-back"),
]
FRAMES = [FrameStatus(number * 4_392, 4_392, 42_217, 1 + number % 3) for number in range(100)]
FRAMES_PATH = f"{HOUR_PATH}/frames"


def part_rows(page: Page) -> Locator:
    """Return the rows of the table of parts, without those of the frames."""
    card = page.locator("section.card", has=page.get_by_role("heading", name=re.compile("Parts")))
    return card.locator(".rows > tbody > tr:not(.detail)")


def open_compressed(open_page: OpenPage, frames: Callable[[Route], None]) -> Page:
    """Open the page of an hour with a compressed part."""
    answer = detail(CellStatus.COMPLETE, marker=COMPRESSED, parts_of_hour=PARTS)
    return open_page(ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=answer), FRAMES_PATH: frames})


def answer_frames(route: Route) -> None:
    assert parse_qs(urlsplit(route.request.url).query) == {"part": [NAME]}
    route.fulfill(json=to_json(asdict(FramesView(2345, FRAMES))))


def test_compressed_hour_shows_ratio_and_bytes_saved(open_page: OpenPage) -> None:
    page = open_compressed(open_page, answer_frames)
    facts = page.locator("dl").first
    expect(facts).to_contain_text("Bytes in95.4 MiB (100,000,000)")
    expect(facts).to_contain_text("Bytes stored9.9 MiB (10,400,000)Ratio9.6xSaved85.4 MiB, 89.6 %")
    cells = part_rows(page).nth(0).locator("td")
    # Only the content tells how full a compressed part is.
    expect(cells).to_have_text(
        [NAME, "298", "2,345", "9.8 MiB", "94.4 MiB", "9.6x", "100 %", PARTS[0].crc64nvme or "", "read-back"]
    )
    other = part_rows(page).nth(1)
    expect(other.locator("td").nth(2)).to_have_text("")
    expect(other.get_by_role("button")).to_have_count(0)


def test_hour_that_compression_enlarges_saves_nothing(open_page: OpenPage) -> None:
    answer = detail(CellStatus.COMPLETE, marker={**MARKER, "bytes_in": 1000, "bytes_stored": 1024})
    page = open_page(ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=answer)})
    expect(page.locator("dl").first).to_contain_text("Ratio1.0xSavednone, 24 B more")


def test_uncompressed_hour_shows_nothing_about_compression(open_page: OpenPage) -> None:
    answer = detail(CellStatus.COMPLETE, marker=MARKER, parts_of_hour=PARTS[1:])
    page = open_page(ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=answer)})
    expect(part_rows(page).locator("td")).to_have_count(6)
    for word in ("Bytes stored", "Ratio", "Saved", "Frames", "Content"):
        expect(page.get_by_text(word, exact=True)).to_have_count(0)


def test_frames_are_read_once_and_survive_an_update(open_page: OpenPage) -> None:
    requests = []

    def counted(route: Route) -> None:
        requests.append(route)
        answer_frames(route)

    page = open_compressed(open_page, counted)
    button = page.get_by_role("button", name=f"2,345 frames of {NAME}")
    expect(button).to_have_attribute("aria-expanded", "false")
    table = page.get_by_role("table", name=f"Frames of {NAME}")
    expect(table).to_have_count(0)
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(table.get_by_role("columnheader")).to_have_text(
        ["Frame", "Offset", "Stored", "Content", "Raw objects"]
    )
    expect(table.locator("tbody tr")).to_have_count(100)
    expect(table.locator("tbody tr").nth(1).locator("th, td")).to_have_text(
        ["1", "4,392", "4.3 KiB", "41.2 KiB", "2"]
    )
    expect(page.get_by_text("The first 100 are shown, and there are 2,245 more.")).to_be_visible()
    region = page.get_by_role("region", name="Part")
    region.evaluate("region => region.scrollTo(0, 300)")
    region.evaluate("region => { region.id = 'before' }")
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#before")).to_have_count(0)
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(table.locator("tbody tr")).to_have_count(100)
    assert region.evaluate("region => region.scrollTop") == 300
    button.click()
    expect(table).to_be_hidden()
    expect(button).to_have_attribute("aria-expanded", "false")
    assert len(requests) == 1


def test_frames_that_cannot_be_read_show_why_and_retry(open_page: OpenPage) -> None:
    requests = []

    def busy_once(route: Route) -> None:
        requests.append(route)
        if len(requests) > 1:
            answer_frames(route)
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"detail": "too many <b>hours</b>"})

    page = open_compressed(open_page, busy_once)
    page.get_by_role("button", name="2,345 frames").click()
    expect(page.locator(".frames").get_by_role("status")).to_have_text("too many <b>hours</b>")
    expect(page.locator(".frames tbody tr")).to_have_count(100)


@pytest.mark.parametrize("width", [1280, 400])
def test_frames_fit_into_the_window(open_page: OpenPage, width: int) -> None:
    page = open_compressed(open_page, answer_frames)
    page.set_viewport_size({"width": width, "height": 900})
    page.get_by_role("button", name="2,345 frames").click()
    cells = page.locator(".frames tbody tr").first.locator("th, td")
    expect(cells).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".frames").evaluate("frames => frames.closest('.scroll').scrollTo(0, 0)")
    for cell in cells.all():
        box = cell.bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width


def open_month(
    open_page: OpenPage, markers: Mapping[datetime, MarkerView], cost: CostView | None = None
) -> Page:
    """Open the page of a month with these complete hours."""
    first = HOUR.replace(day=1, hour=0)
    hours = []
    for at in (first + timedelta(hours=number) for number in range(30 * 24)):
        state = CellStatus.COMPLETE if at in markers else CellStatus.NONE
        hours.append(HourView(format_hour(at), state, "", None, markers.get(at), None))
    view = MonthView(STREAM, "2026-11", NOW, hours, BucketView(NOW, NOW, 0, ""), totals_view(hours), cost)
    month = to_json(asdict(view))
    return open_page(
        f"{PAGE}?stream=app&month=2026-11", {"api/streams/app/hours": lambda route: route.fulfill(json=month)}
    )


def costs(page: Page) -> Locator:
    """The card of costs."""
    return page.locator("section.card", has=page.get_by_role("heading", name="Cost of S3 a month"))


FIGURES = CostFigures(
    "USD", 118.75, 297.06, 120.67, 536.82, 2912.25, 168, "2026-11-16T09:00:00Z", "2026-11-23T08:00:00Z", 14.0,
    "us-east-1", date(2026, 6, 18),
)  # fmt: skip


def test_month_shows_costs_and_what_they_are_measured_from(open_page: OpenPage) -> None:
    page = open_month(open_page, {HOUR: marker_view(None)}, CostView(FIGURES))
    expect(costs(page).locator("dl")).to_have_text(
        "Now536.82 USDRaw objects118.75 USDParts297.06 USDRequests120.67 USDWithout the rollup2,912.25 USD"
        "Saved2,375.43 USD, 82 %"
    )
    expect(costs(page)).to_contain_text(
        "Measured from 168 complete hours, 16 Nov 09:00 to 23 Nov 09:00, with list prices of us-east-1 as of "
        "2026-06-18. Raw objects are kept for 14 days."
    )
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_month_shows_that_nothing_is_saved(open_page: OpenPage) -> None:
    figures = replace(FIGURES, raw=2802.75, total=3220.82, without=2912.25, raw_days=None, hours=1)
    page = open_month(open_page, {HOUR: marker_view(None)}, CostView(figures))
    expect(costs(page)).to_contain_text("Savednone, 308.57 USD more")
    expect(costs(page)).to_contain_text("Measured from 1 complete hour,")
    expect(costs(page)).to_contain_text(
        "kept for ever, because the stream has no expire_raw that deletes them"
    )


def test_month_shows_why_there_are_no_costs(open_page: OpenPage) -> None:
    page = open_month(open_page, {HOUR: marker_view(None)}, CostView(None, "<b>prices</b> are wrong"))
    expect(costs(page)).to_have_text("Cost of S3 a monthNot known: <b>prices</b> are wrong")


def marker_view(stored: int | None) -> MarkerView:
    return MarkerView(300, 10**8, 10**8, 3, 3.9, 20, 25, format_hour(NOW), None, stored)


def test_month_shows_ratio_and_bytes_saved(open_page: OpenPage) -> None:
    markers = {HOUR: marker_view(10_400_000), HOUR - timedelta(hours=1): marker_view(None)}
    page = open_month(open_page, markers)
    totals = page.locator("section.card", has=page.get_by_role("heading", name="Complete hours of the month"))
    expect(totals.locator("dl")).to_have_text(
        "Hours2Raw objects600Bytes in191 MiBBytes stored105 MiBRatio1.8xSaved85.4 MiB, 44.8 %"
    )
    expect(totals).to_contain_text("1 of these hours has compressed parts.")
    cell = page.locator(f'a.hour[data-key="{format_hour(HOUR)}"]')
    expect(cell).to_have_attribute("aria-label", re.compile("9.9 MiB stored, ratio 9.6x"))
    cell.hover()
    expect(page.locator(".tip")).to_contain_text("9.9 MiB stored, ratio 9.6x")
    page.locator(f'a.hour[data-key="{format_hour(HOUR - timedelta(hours=1))}"]').hover()
    expect(page.locator(".tip")).to_contain_text("07:00")
    expect(page.locator(".tip")).not_to_contain_text("stored")


def test_month_without_compression_shows_no_ratio(open_page: OpenPage) -> None:
    page = open_month(open_page, {HOUR: marker_view(None)})
    expect(page.locator("dl.totals")).to_have_text("Hours1Raw objects300Bytes in95.4 MiBBytes stored95.4 MiB")


def test_month_without_complete_hours_has_no_totals(open_page: OpenPage) -> None:
    page = open_month(open_page, {})
    expect(page.get_by_role("grid")).to_be_visible()
    expect(page.locator("dl.totals")).to_have_count(0)


# -- all streams ---------------------------------------------------------------------------------------


def overview_row(name: str, states: Mapping[int, str], **more: Any) -> RowView:
    """Return the row of a stream whose hours are complete, except those that are given."""
    values: dict[str, Any] = {
        "last_complete": format_hour(LAST_HOURS[-1]), "hours_behind": 0, "due": 47, "incomplete": 0, "failed": 0,
        "missing": 0, "overdue": 0, "objects": 4700, "bytes_in": 10 * 2**30, "bytes_stored": 2**30,
        "volume": Comparison(VolumeState.USUAL, 300, 3000, 300, 3000), "groups": None, "unusual": 0,
        "first_unusual": (), "late": None, "pending": 0, "error": "", "problems": (), "reasons": {}, **more,
    }  # fmt: skip
    shown = [states.get(number, "complete") for number in range(len(LAST_HOURS))]
    return RowView(name=name, dag_id=f"log_rollup_{name}", paused=False, states=shown, **values)


LAST_HOURS = last_hours(NOW)
SILENT = Comparison(VolumeState.SILENT, 0, 0, 1454, 721 * 2**20)
ROWS = [
    overview_row("whole", {9: "empty"}),
    overview_row("silent", {}, volume=SILENT, problems=["silent"]),
    overview_row(
        "failed",
        {30: "failed"},
        failed=1,
        incomplete=1,
        reasons={30: "pack_shard failed"},
        problems=["failed"],
    ),
    overview_row("web-behind", {47: "late"}, hours_behind=5, incomplete=5, problems=["behind"]),
    *(overview_row(f"other-{number:03d}", {}) for number in range(36)),
]


def test_all_streams_are_shown_problems_first(open_page: OpenPage) -> None:
    view = OverviewView(NOW, list(map(format_hour, LAST_HOURS)), ROWS, BucketView(NOW, NOW, 0, ""))
    answer = overview_response(view).body
    page = open_page(
        f"{PAGE}?view=streams",
        {"api/overview": lambda route: route.fulfill(body=bytes(answer), content_type="application/json")},
    )
    rows, names = page.locator(".row:not(.head)"), page.locator(".row:not(.head) > .name > a")
    expect(rows).to_have_count(40)
    # Those of hidden rows are drawn a little later.
    expect(page.locator("a.hour")).to_have_count(40 * len(LAST_HOURS))
    assert names.all_text_contents()[:5] == ["failed", "web-behind", "silent", "whole", "other-000"]
    expect(page.get_by_role("heading", level=2)).to_have_text("38 of 40 streams are whole.")
    expect(page.locator(".whole .quiet")).to_contain_text(
        "Of 1,880 hours that should be complete, 1,874 are."
    )
    first = rows.first
    expect(first).to_contain_text("Failed 1")
    expect(first.locator(".note")).to_have_text(re.compile("pack_shard failed$"))
    expect(first.locator(".saved")).to_have_text("90 %")
    expect(rows.nth(1).locator(".last")).to_have_text("23 Nov, 11:00 5 h behind")
    expect(rows.nth(2).locator(".note")).to_have_text(
        "no objects in the last 3 complete hours, usual are 1,454 with 721 MiB"
    )
    expect(rows.nth(3).locator("a.hour[data-state='empty']")).to_have_count(1)
    # One tab stop; arrow keys move within the grid.
    expect(page.locator(".streams [tabindex='0']")).to_have_count(1)
    names.first.focus()
    for key in ("ArrowDown", "ArrowUp", *["ArrowRight"] * 31):
        page.keyboard.press(key)
    hour = format_hour(LAST_HOURS[30])
    expect(page.locator("a.hour:focus")).to_have_attribute("data-key", f"failed {hour}")
    expect(page.locator(".tip")).to_contain_text("pack_shard failed")
    page.keyboard.press("Control+End")
    expect(page.locator("a.hour:focus")).to_have_attribute("data-key", re.compile("^other-035 "))
    page.get_by_role("button", name="Silent 1").click()
    expect(names).to_have_text(["silent"])
    page.get_by_role("button", name="Silent 1").click()
    page.get_by_role("searchbox", name="Filter streams").fill("WEB")
    expect(names).to_have_text(["web-behind"])
    # The choice survives an update.
    page.get_by_role("button", name="Refresh").click()
    expect(names).to_have_text(["web-behind"])
    page.get_by_role("searchbox", name="Filter streams").fill("")
    for width in (1280, 900, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(names.first).to_have_attribute("href", "./?stream=failed")


# -- groups --------------------------------------------------------------------------------------------

GROUPS_PATH = f"{HOUR_PATH}/groups"
GROUPED = make_stream(
    raw=RawTemplate.parse("s3://logs/raw/{service}/"),
    aggregated=AggregatedTemplate.parse("s3://logs/out/{service}/"),
)


def summary_of(count: int, long_names: bool = False) -> HourSummary:
    """Return a complete hour with groups ``service-0000``, ``service-0001``, … of growing size.

    :param long_names: the names get longer from group to group
    """
    groups = [
        {
            "folder": f"{name}/20261123/08/", "captures": {"service": name},
            "objects": number + 1, "bytes_in": (number + 1) * 10**5, "parts": 1, "damaged": 0,
        }
        for number in range(count)
        for name in [f"service-{number:04d}" + "-long" * number * long_names]
    ]  # fmt: skip
    return HourSummary(HOUR, HourStatus.COMPLETE, {**MARKER, "groups": count}, groups=groups)


def open_grouped(open_page: OpenPage, count: int, long_names: bool = False) -> Page:
    """Open the page of an hour with so many groups."""
    summary = summary_of(count, long_names)
    shown = groups_view(GROUPED, summary, None)

    def answer_groups(route: Route) -> None:
        asked = parse_qs(urlsplit(route.request.url).query)
        most = int(asked.get("most", ["50"])[0])
        found = groups_view(GROUPED, summary, None, asked.get("search", [""])[0], most)
        assert found is not None
        route.fulfill(json=to_json(asdict(found)))

    answer = detail(CellStatus.COMPLETE, marker=summary.marker, groups=shown, stream=GROUPED)
    return open_page(
        ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=answer), GROUPS_PATH: answer_groups}
    )


def test_few_groups_are_all_shown_largest_first(open_page: OpenPage) -> None:
    page = open_grouped(open_page, 3)
    card = page.locator("section.card", has=page.get_by_role("heading", name="Groups (3)"))
    names = card.locator("tbody td:first-child")
    expect(names).to_have_text(["service-0002", "service-0001", "service-0000"])
    expect(card.get_by_role("status")).to_have_text("All of 3")
    expect(card.get_by_role("button", name="Show all")).to_be_hidden()
    expect(card).to_contain_text("s3://logs/out/service-0002/20261123/08/")
    expect(page.locator("dl").first).to_contain_text("Groups3")


def test_compressed_groups_show_stored_bytes_and_ratio(open_page: OpenPage) -> None:
    summary = summary_of(2)
    largest = {**summary.groups[1], "bytes_stored": 20_000}
    shown = groups_view(GROUPED, replace(summary, groups=[summary.groups[0], largest]), None)
    answer = detail(CellStatus.COMPLETE, marker=summary.marker, groups=shown, stream=GROUPED)
    page = open_page(ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=answer)})
    card = page.locator("section.card", has=page.get_by_role("heading", name="Groups (2)"))
    expect(card.get_by_role("columnheader")).to_have_text(
        ["Group", "Raw objects", "Size", "Stored", "Ratio", "Parts", "Prefix"]
    )
    rows = card.locator("tbody tr")
    for row, stored, ratio in ((0, "19.5 KiB", "10.0x"), (1, "", "")):
        expect(rows.nth(row).locator("td").nth(3)).to_have_text(stored)
        expect(rows.nth(row).locator("td").nth(4)).to_have_text(ratio)


def test_many_groups_can_be_searched_and_all_shown(open_page: OpenPage) -> None:
    page = open_grouped(open_page, 1000)
    card = page.locator("section.card", has=page.get_by_role("heading", name="Groups (1,000)"))
    rows = card.locator("tbody tr")
    expect(rows).to_have_count(50)
    expect(card.get_by_role("status")).to_have_text("The 50 largest of 1,000")
    search = card.get_by_role("searchbox", name="Search groups")
    search.fill("SERVICE-012")
    expect(rows).to_have_count(10)
    expect(card.get_by_role("status")).to_have_text("All of 10 matching")
    search.fill("nothing like it")
    expect(card.get_by_role("status")).to_have_text("No group matches.")
    search.fill("")
    expect(rows).to_have_count(50)
    card.get_by_role("button", name="Show all").click()
    expect(rows).to_have_count(1000)
    expect(card.get_by_role("button", name="Show all")).to_be_hidden()


def test_search_survives_the_update_of_the_page(open_page: OpenPage) -> None:
    page = open_grouped(open_page, 1000)
    search = page.get_by_role("searchbox", name="Search groups")
    search.fill("service-0123")
    rows = page.locator("section.card", has=search).locator("tbody tr")
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Refresh").click()
    expect(search).to_have_value("service-0123")
    expect(rows).to_have_count(1)


def test_answers_about_groups_stay_bounded() -> None:
    for count, most, rows in ((3, 50, 3), (1000, 50, 50), (5000, 1000, 1000)):
        found = groups_view(GROUPED, summary_of(count), None, "", most)
        assert found is not None
        assert (found.total, found.found, len(found.groups)) == (count, count, rows)


def test_tooltip_has_the_number_of_groups(open_page: OpenPage) -> None:
    marker = MarkerView(300, 10**8, 10**8, 3, 3.9, 20, 25, format_hour(NOW), 1234)
    first = HOUR.replace(day=1, hour=0)
    hours = [
        HourView(format_hour(first + timedelta(hours=number)), CellStatus.NONE, "", None, None, None)
        for number in range(30 * 24)
    ]
    hours[22 * 24 + 8] = HourView(format_hour(HOUR), CellStatus.COMPLETE, "", None, marker, None)
    month = to_json(asdict(MonthView(STREAM, "2026-11", NOW, hours, BucketView(NOW, NOW, 0, ""))))
    page = open_page(
        f"{PAGE}?stream=app&month=2026-11", {"api/streams/app/hours": lambda route: route.fulfill(json=month)}
    )
    page.locator(f'a.hour[data-key="{format_hour(HOUR)}"]').hover()
    expect(page.locator(".tip")).to_contain_text("300 objects, 95.4 MiB in 3 parts of 1,234 groups")


def test_calendar_marks_hours_with_expired_raw_objects(open_page: OpenPage) -> None:
    first = HOUR.replace(day=1, hour=0)
    expired = ExpiredObjects(300, 10**8, "2026-11-23T11:00:00+00:00", finished=True)
    hours = [
        HourView(format_hour(first + timedelta(hours=number)), CellStatus.COMPLETE, "", None, None, None)
        for number in range(30 * 24)
    ]
    hours[22 * 24 + 8] = replace(hours[22 * 24 + 8], why=str(expired), expired=expired)
    month = to_json(asdict(MonthView(STREAM, "2026-11", NOW, hours, BucketView(NOW, NOW, 0, ""))))
    page = open_page(
        f"{PAGE}?stream=app&month=2026-11", {"api/streams/app/hours": lambda route: route.fulfill(json=month)}
    )
    expect(page.locator(".legend")).to_contain_text("Raw expired 1")
    expect(page.locator("a.hour[data-expired]")).to_have_attribute("data-key", format_hour(HOUR))
    page.locator("a.hour[data-expired]").hover()
    expect(page.locator(".tip")).to_contain_text("300 raw objects expired on 2026-11-23")


def test_reason_of_an_hour_that_clocks_empty_is_shown(open_page: OpenPage) -> None:
    why = "No object belongs to the UTC hour 2026-10-25T00:00:00Z: the clocks of Europe/Berlin are set back."
    answer = detail(CellStatus.COMPLETE, why, {**MARKER, "objects": 0, "parts": 0, "why_empty": why})
    page = open_page(ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=answer)})
    expect(page.locator(".why")).to_have_text(why)


def test_console_links_lead_to_folders() -> None:
    meta = SimpleNamespace(
        endpoint_url="https://s3.eu-central-1.amazonaws.com", partition="aws", region_name="eu-central-1"
    )
    console = "https://console.aws.amazon.com/s3/buckets/logs?region=eu-central-1&prefix="
    raw, parts, records = place_views(GROUPED, HOUR, meta)
    services = ("service",)
    assert raw == PlaceView("s3://logs/raw/{service}/20261123/08/", f"{console}raw/", [], services)
    assert parts == PlaceView("s3://logs/out/{service}/20261123/08/", f"{console}out/", [], services)
    home = "s3://logs/out/_hours/app/20261123/08/"
    assert records == PlaceView(home, f"{console}out/_hours/app/20261123/08/", [home])
    found = groups_view(GROUPED, summary_of(1), meta)
    assert found is not None
    assert found.groups[0].place.console == f"{console}out/service-0000/20261123/08/"
    within_a_step = make_stream(raw=RawTemplate.parse("s3://logs/raw/%Y%m%d/host_%H"))
    assert place_views(within_a_step, HOUR, meta)[0].console == f"{console}raw/20261123/"
    capture_first = make_stream(
        raw=RawTemplate.parse("s3://logs/{service}/%Y%m%d/%H/"),
        aggregated=AggregatedTemplate.parse("s3://parts/{service}/%Y%m%d/%H/"),
    )
    raw, parts, _ = place_views(capture_first, HOUR, meta)
    assert (raw.console, parts.console) == (console, console.replace("logs", "parts"))


def bucket_card(page: Page) -> Locator:
    """Return the card with the prefixes of an hour."""
    return page.locator("section.card", has=page.get_by_role("heading", name="In the bucket"))


def test_templates_are_shown_without_a_copy_button(open_page: OpenPage) -> None:
    card = bucket_card(open_grouped(open_page, 3))
    expect(card.locator("h4")).to_have_text(
        [
            "Raw objects: a prefix for each service",
            "Parts: a prefix for each service",
            "Manifest and _SUCCESS of the hour",
        ]
    )
    buttons = [line.get_by_role("button", name="Copy").count() for line in card.locator(".place").all()]
    assert buttons == [0, 0, 1]


def test_each_raw_prefix_of_an_hour_has_its_copy_button(open_page: OpenPage) -> None:
    """Lord Howe sets its clocks by half an hour, so two local hours begin in one UTC hour."""
    hour = datetime(2026, 10, 3, 15, tzinfo=UTC)
    stream = make_stream(raw=RawTemplate.parse("s3://logs/raw/%Y%m%d/%H/", "Australia/Lord_Howe"))
    answer = detail(CellStatus.OPEN, stream=stream, hour=hour)
    page = open_page(ADDRESS, {HOUR_PATH: lambda route: route.fulfill(json=answer)})
    lines = bucket_card(page).locator(".where").first.locator(".place")
    expect(lines).to_have_text(["s3://logs/raw/20261004/01/Copy", "s3://logs/raw/20261004/02/Copy"])


def test_hour_that_clocks_empty_has_no_raw_prefix() -> None:
    stream = make_stream(raw=RawTemplate.parse("s3://logs/raw/%Y%m%d/%H/", "Europe/Berlin"))
    raw, parts, _ = place_views(stream, datetime(2026, 10, 25, tzinfo=UTC), None)
    assert raw.prefixes == []
    assert parts.prefixes == [parts.url]


@pytest.mark.parametrize("width", [1280, 400])
def test_copy_buttons_of_groups_are_aligned(open_page: OpenPage, width: int) -> None:
    page = open_grouped(open_page, 12, long_names=True)
    page.set_viewport_size({"width": width, "height": 900})
    rows = page.locator("section.card tbody tr")
    rows.nth(11).wait_for()
    boxes = [
        (row.bounding_box(), row.get_by_role("button", name="Copy").bounding_box()) for row in rows.all()
    ]
    assert len(boxes) == 12
    lefts, offsets = set(), set()
    for row, button in boxes:
        assert row is not None
        assert button is not None
        lefts.add(round(button["x"]))
        offsets.add(round(button["y"] + button["height"] / 2 - row["y"] - row["height"] / 2))
    assert len(lefts) == 1
    assert max(map(abs, offsets)) <= 1
