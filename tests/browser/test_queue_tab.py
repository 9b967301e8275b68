"""The Queue tab in Chromium: waiting, reordering, editing, pausing, failing, and what a visitor sees of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from ovi_studio.errors import OutOfMemoryError
from tests.browser.tabs import Tabs, TabsVisitor, serving_tabs
from tests.fakes import FakeEngine

pytestmark = pytest.mark.browser

EVIL = '<img src=x onerror="document.title=`broken`">'

DEAF = """
    window.EventSource = class extends EventSource {
        set onmessage(listener) { super.onmessage = (message) => window.deaf || listener(message); }
    };
"""


def held(folder: Path) -> FakeEngine:
    """An engine whose runs end when the test says so, by its `step_seconds`."""
    return FakeEngine(folder, steps=2000, step_seconds=0.05)


@pytest.fixture
def tabs(tmp_path: Path) -> Iterator[Tabs]:
    with serving_tabs(tmp_path / "here", held) as tabs:
        yield tabs
        tabs.desk.library.cancel_all()


@pytest.fixture
def visitor(tabs: Tabs, browser: Browser) -> Iterator[Callable[..., TabsVisitor]]:
    """Opens the Queue; in the end it must not have complained, nor asked another machine."""
    visitors: list[TabsVisitor] = []

    def open_page(script: str = "", **options: object) -> TabsVisitor:
        context = browser.new_context(**options)
        context.add_init_script(script)
        visitors.append(TabsVisitor(context, tabs.address))
        visitors[-1].tab("Queue")
        return visitors[-1]

    yield open_page
    for each in visitors:
        assert each.complaints == []
        assert each.page.title() == "Tabs"
        each.context.close()


def waiting(visitor: TabsVisitor) -> Locator:
    return visitor.page.locator(".ovi-lineup .ovi-job b")


def row(visitor: TabsVisitor, title: str) -> Locator:
    return visitor.page.locator(".ovi-job", has=visitor.page.locator("b", has_text=title))


def test_an_empty_queue_says_what_to_do(visitor: Callable) -> None:
    expect(visitor().page.locator(".ovi-queue .ovi-blank")).to_contain_text("Generate")


def test_queue_three_reorder_reload_finish(tabs: Tabs, visitor: Callable) -> None:
    tabs.ask("first", "one", "two", "three")
    me = visitor()
    expect(me.page.locator(".ovi-now b")).to_have_text(["first"])
    expect(waiting(me)).to_have_text(["one", "two", "three"])
    expect(row(me, "one")).to_contain_text("ready in")
    expect(me.page.locator(".ovi-sum")).to_contain_text("all ready in about")
    row(me, "three").get_by_role("button", name="Move up").click()
    expect(waiting(me)).to_have_text(["one", "three", "two"])
    row(me, "one").locator(".ovi-grip").focus()
    me.page.keyboard.press("End")
    expect(waiting(me)).to_have_text(["three", "two", "one"])
    expect(row(me, "one").locator(".ovi-grip")).to_be_focused()
    row(me, "one").locator(".ovi-grip").drag_to(row(me, "three"), target_position={"x": 200, "y": 4})
    expect(waiting(me)).to_have_text(["one", "three", "two"])
    me.page.wait_for_timeout(700)  # the news come meanwhile: the order stays
    expect(waiting(me)).to_have_text(["one", "three", "two"])
    me.reload()
    me.tab("Queue")
    expect(waiting(me)).to_have_text(["one", "three", "two"])
    tabs.engines[0].step_seconds = 0
    expect(me.page.locator(".ovi-past .ovi-job b")).to_have_text(["two", "three", "one", "first"])
    expect(me.page.locator(".ovi-queue .ovi-blank")).to_be_visible()
    me.page.get_by_role("button", name="Clear").click()
    me.reload()
    me.tab("Queue")
    expect(me.page.locator(".ovi-past")).to_be_hidden()
    assert [request.prompt for request in tabs.engines[0].requests] == ["first", "one", "three", "two"]


def test_pause_resume_duplicate_cancel_and_stop_after_this(tabs: Tabs, visitor: Callable) -> None:
    tabs.ask("first", "one", "two")
    me = visitor()
    row(me, "one").get_by_role("button", name="Pause").click()
    expect(row(me, "one").locator(".ovi-time")).to_have_text("paused")
    expect(row(me, "two").locator(".ovi-rank")).to_have_text("1")
    row(me, "one").get_by_role("button", name="Resume").click()
    expect(row(me, "two").locator(".ovi-rank")).to_have_text("2")
    row(me, "one").get_by_role("button", name="Duplicate").click()
    expect(waiting(me)).to_have_text(["one", "two", "one"])
    row(me, "two").get_by_role("button", name="Cancel").click()
    expect(waiting(me)).to_have_text(["one", "one"])
    expect(me.page.locator(".ovi-past .ovi-job")).to_contain_text("cancelled")
    me.page.get_by_role("button", name="Stop after this one").click()
    expect(me.page.locator(".ovi-sum")).to_contain_text("2 paused")
    row(me, "first").get_by_role("button", name="Cancel").click()
    expect(me.page.locator(".ovi-now .ovi-job")).to_have_count(0)
    expect(me.page.locator(".ovi-sum b")).to_have_text("2 paused")
    me.page.get_by_role("button", name="Resume all").click()
    expect(me.page.locator(".ovi-now b")).to_have_text(["one"])


def test_a_waiting_job_is_edited_in_its_place(tabs: Tabs, visitor: Callable) -> None:
    _, one, _ = tabs.ask("first", "one", "two")
    me = visitor()
    row(me, "one").get_by_role("button", name="Edit").click()
    me.tab("Editor")
    expect(me.page.get_by_label("Prompt")).to_have_value("one")
    me.page.get_by_label("Prompt").fill("another one")
    me.page.get_by_role("button", name="Save in its place").click()
    expect(me.page.get_by_role("button", name="Save in its place")).to_be_hidden()
    me.tab("Queue")
    expect(waiting(me)).to_have_text(["another one", "two"])
    assert tabs.desk.library.get(one.id).request.prompt == "another one"


def test_a_failure_is_told_tried_again_and_deleted(tabs: Tabs, visitor: Callable) -> None:
    tabs.engines[0].step_seconds = 0
    tabs.engines[0].error = OutOfMemoryError("The card is too small.", "Choose a smaller size.")
    tabs.wait(tabs.ask(f"bad {EVIL}"))
    me = visitor()
    expect(me.page.locator(".ovi-failed .ovi-reason")).to_have_text("The card is too small. Choose a smaller size.")
    me.page.locator(".ovi-failed").get_by_role("button", name="Delete").click()
    expect(me.page.locator(".ovi-failed")).to_have_count(0)
    me.page.get_by_role("button", name="Undo").click()
    expect(me.page.locator(".ovi-failed")).to_have_count(1)
    tabs.engines[0].error = None
    me.page.locator(".ovi-failed").get_by_role("button", name="Try again").click()
    expect(me.page.locator(".ovi-past")).to_contain_text("ready")
    expect(me.page.locator(".ovi-failed")).to_have_count(0)
    assert me.page.locator("img[src=x]").count() == 0


def test_what_was_meant_for_a_job_that_is_over_is_told(tabs: Tabs, visitor: Callable) -> None:
    _, one = tabs.ask("first", "one")
    me = visitor(DEAF)
    expect(waiting(me)).to_have_text(["one"])
    me.page.evaluate("window.deaf = true")
    tabs.desk.library.cancel(one.id)
    row(me, "one").get_by_role("button", name="Pause").click()
    expect(me.page.locator(".ovi-queue .ovi-trouble")).to_contain_text("cancelled")


@pytest.mark.slow
def test_hundreds_of_jobs_stay_smooth(tabs: Tabs, visitor: Callable) -> None:
    tabs.ask("first", *(f"job {number}" for number in range(400)))
    me = visitor()
    expect(waiting(me)).to_have_count(400)
    session = me.page.context.new_cdp_session(me.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # what others do on this machine does not count

    def worked() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    before = worked()
    me.page.wait_for_timeout(3000)
    assert 0 < worked() - before < 0.4 * 3  # seconds of the page's thread while steps come in; 0.17 was measured
    row(me, "job 399").locator(".ovi-grip").focus()
    me.page.keyboard.press("Home")
    expect(waiting(me).first).to_have_text("job 399")


def test_on_a_narrow_screen_nothing_sticks_out(tabs: Tabs, visitor: Callable) -> None:
    tabs.ask("first", "A long prompt " * 8, "two")
    me = visitor(viewport={"width": 390, "height": 844})
    expect(waiting(me)).to_have_count(2)
    assert me.page.evaluate("document.documentElement.scrollWidth") <= 390
