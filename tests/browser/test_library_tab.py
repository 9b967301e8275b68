"""The Library tab in Chromium: looking, searching, naming, using again, deleting and taking back, exporting."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from ovi_studio.studio.job import Job
from ovi_studio.studio.rows import ImageFolders, check_batch
from tests.browser.tabs import Tabs, TabsVisitor, serving_tabs
from tests.fakes import FakeEngine

pytestmark = pytest.mark.browser

EVIL = '<img src=x onerror="document.title=`broken`">'
PROMPTS = ("A dog barks.", "A cat sings <S>Hello<E>", "Rain on a roof")


def quick(folder: Path) -> FakeEngine:
    return FakeEngine(folder, steps=1)


@pytest.fixture
def tabs(tmp_path: Path) -> Iterator[Tabs]:
    with serving_tabs(tmp_path / "here", quick) as tabs:
        yield tabs


@pytest.fixture
def visitor(tabs: Tabs, browser: Browser) -> Iterator[Callable[..., TabsVisitor]]:
    """Opens the page; in the end it must not have complained, nor asked another machine."""
    visitors: list[TabsVisitor] = []

    def open_page(**options: object) -> TabsVisitor:
        visitors.append(TabsVisitor(browser.new_context(accept_downloads=True, **options), tabs.address))
        return visitors[-1]

    yield open_page
    for each in visitors:
        assert each.complaints == []
        assert each.page.title() == "Tabs"
        each.context.close()


def made(tabs: Tabs, *prompts: str) -> list[Job]:
    """Clips that are finished."""
    jobs = tabs.ask(*prompts)
    tabs.wait(jobs)
    return [tabs.desk.library.get(job.id) for job in jobs]


def titles(visitor: TabsVisitor) -> list[str]:
    return visitor.page.locator(".ovi-clip h3").all_inner_texts()


def card(visitor: TabsVisitor, title: str) -> Locator:
    return visitor.page.locator(".ovi-clip", has=visitor.page.locator("h3", has_text=title))


def test_an_empty_library_says_what_to_do_and_a_new_clip_appears(tabs: Tabs, visitor: Callable) -> None:
    me = visitor()
    expect(me.page.locator(".ovi-shelf .ovi-blank")).to_contain_text("press Generate")
    made(tabs, "A dog barks.")
    expect(me.page.locator(".ovi-clip")).to_have_count(1)
    expect(me.page.locator(".ovi-shelf .ovi-blank")).to_be_hidden()


def test_clips_play_while_they_are_pointed_at(tabs: Tabs, visitor: Callable) -> None:
    made(tabs, *PROMPTS[:2])
    me = visitor()
    expect(me.page.locator(".ovi-clip")).to_have_count(2)
    assert me.page.locator(".ovi-clip video").count() == 0
    me.page.locator(".ovi-clip").first.hover()
    video = me.page.locator(".ovi-clip").first.locator("video")
    expect(video).to_have_js_property("muted", True)
    expect(me.page.locator(".ovi-clip").first).to_have_class("ovi-clip ovi-playing")
    me.page.locator(".ovi-words-in").hover()
    expect(me.page.locator(".ovi-clip video")).to_have_count(0)
    me.page.locator(".ovi-clip .ovi-watch").nth(1).focus()  # by keyboard too
    expect(me.page.locator(".ovi-clip").nth(1).locator("video")).to_have_count(1)


def test_search_filters_and_the_way_back(tabs: Tabs, visitor: Callable) -> None:
    dog, _, _ = made(tabs, *PROMPTS)
    tabs.desk.library.set_tags(dog.id, ["pets"])
    tabs.desk.library.set_favourite(dog.id, True)
    me = visitor()
    expect(me.page.locator(".ovi-clip")).to_have_count(3)
    me.page.get_by_label("Search clips").fill("cat hello")
    expect(me.page.locator(".ovi-clip")).to_have_count(1)
    me.page.get_by_label("Search clips").fill("nothing like it")
    expect(me.page.locator(".ovi-blank")).to_contain_text("No clip fits")
    me.page.get_by_role("button", name="Show all clips").click()
    expect(me.page.locator(".ovi-clip")).to_have_count(3)
    me.page.get_by_label("Tag", exact=True).select_option("pets")
    expect(me.page.locator(".ovi-clip")).to_have_count(1)
    me.page.get_by_label("Tag", exact=True).select_option("")
    me.page.get_by_role("button", name="★ Favourites").click()
    expect(me.page.locator(".ovi-clip")).to_have_count(1)
    me.page.get_by_role("button", name="★ Favourites").click()
    me.page.get_by_label("Order").select_option("1")
    expect(me.page.locator(".ovi-clip h3").first).to_have_text("A dog barks.")


def test_more_are_shown_a_page_at_a_time(tabs: Tabs, visitor: Callable) -> None:
    (job,) = made(tabs, "A dog barks.")
    tabs.many_like(job, 60)
    me = visitor()
    expect(me.page.locator(".ovi-clip")).to_have_count(48)
    me.page.get_by_role("button", name="Show more (13 left)").click()
    expect(me.page.locator(".ovi-clip")).to_have_count(61)
    expect(me.page.locator(".ovi-next")).to_be_hidden()
    me.page.get_by_label("Select all shown").check()
    expect(me.page.locator(".ovi-tally")).to_have_text("61 selected")


def test_settings_are_used_again(tabs: Tabs, visitor: Callable) -> None:
    _, cat, _ = made(tabs, *PROMPTS)
    me = visitor()
    card(me, "A cat sings").get_by_role("button", name="Use settings").click()
    me.tab("Editor")
    expect(me.page.get_by_label("Prompt")).to_have_value(cat.request.prompt)
    expect(me.page.get_by_label("Seed")).to_have_value("7")
    expect(me.page.get_by_label("Told")).to_have_value(f"reuse {cat.id}")
    me.tab("Library")
    card(me, "A cat sings").get_by_role("button", name="Open").click()
    me.tab("Editor")
    expect(me.page.get_by_label("Told")).to_have_value(f"show {cat.id}")


def test_names_tags_and_favourites(tabs: Tabs, visitor: Callable) -> None:
    dog, cat, _ = made(tabs, *PROMPTS)
    me = visitor()
    card(me, "A dog barks").get_by_role("button", name="Name and tags").click()
    me.page.get_by_label("Name", exact=True).fill("Rex")
    me.page.get_by_label("Tags", exact=True).fill("pets, loud ,, pets")
    me.page.keyboard.press("Enter")
    expect(me.page.locator("dialog[open]")).to_have_count(0)
    expect(card(me, "Rex").locator(".ovi-tags button")).to_have_text(["pets", "loud"])
    assert (tabs.desk.library.get(dog.id).name, tabs.desk.library.get(dog.id).tags) == ("Rex", ("pets", "loud"))
    card(me, "A cat sings").get_by_label("Select").check()
    me.page.get_by_role("button", name="Add tags").click()
    me.page.locator(".ovi-known button", has_text="pets").click()
    me.page.get_by_role("button", name="Save").click()
    expect(card(me, "A cat sings").locator(".ovi-tags button")).to_have_text(["pets"])
    card(me, "A cat sings").get_by_role("button", name="Favourite").click(force=True)
    expect(card(me, "A cat sings").locator(".ovi-star")).to_have_text("★")
    assert tabs.desk.library.get(cat.id).favourite
    card(me, "Rex").get_by_role("button", name="Name and tags").click()
    me.page.get_by_label("Tags", exact=True).fill("x" * 60)
    me.page.get_by_role("button", name="Save").click()
    expect(me.page.locator("dialog[open] .ovi-problem")).to_contain_text("too long")


def test_deleted_and_undone(tabs: Tabs, visitor: Callable) -> None:
    jobs = made(tabs, *PROMPTS)
    me = visitor()
    card(me, "A dog barks").get_by_role("button", name="Delete").click()
    expect(me.page.locator(".ovi-clip")).to_have_count(2)
    assert not jobs[0].output.exists()
    me.page.get_by_role("button", name="Undo").click()
    expect(me.page.locator(".ovi-clip")).to_have_count(3)
    assert jobs[0].output.is_file()
    me.page.get_by_label("Select all shown").check()
    me.page.locator(".ovi-chosen").get_by_role("button", name="Delete").click()
    expect(me.page.locator(".ovi-undo")).to_contain_text("Deleted 3 clips.")
    me.page.get_by_role("button", name="Deleted (3)").click()
    me.page.get_by_role("button", name="Restore A cat sings “Hello”").click()
    expect(me.page.locator(".ovi-things li")).to_have_count(2)
    me.page.get_by_role("button", name="Delete all for good").click()
    expect(me.page.locator("dialog[open]")).to_have_count(0)
    expect(me.page.locator(".ovi-clip")).to_have_count(1)
    assert [job.output.is_file() for job in jobs] == [False, True, False]


def test_export_of_several_runs_again(tabs: Tabs, visitor: Callable, tmp_path: Path) -> None:
    jobs = made(tabs, *PROMPTS)
    me = visitor()
    me.page.get_by_label("Select all shown").check()
    card(me, "Rain").get_by_label("Select").uncheck()
    with me.page.expect_download() as told:
        me.page.get_by_role("button", name="Export as zip").click()
    told.value.save_as(tmp_path / "clips.zip")
    with zipfile.ZipFile(tmp_path / "clips.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "there")
    clips = {path.read_bytes() for path in (tmp_path / "there").glob("*.mp4")}
    assert clips == {job.output.read_bytes() for job in jobs[:2]}
    checked = check_batch((tmp_path / "there" / "clips.csv").read_bytes(), ImageFolders((tmp_path / "there",)))
    assert checked.faults == ()
    assert {row.request for row in checked.rows} == {job.request for job in jobs[:2]}


def test_two_are_compared(tabs: Tabs, visitor: Callable) -> None:
    made(tabs, *PROMPTS)
    me = visitor()
    for title in ("A dog", "A cat"):
        card(me, title).get_by_label("Select").check()
    me.page.get_by_role("button", name="Compare two").click()
    expect(me.page.locator(".ovi-pair video")).to_have_count(2)
    me.page.get_by_role("button", name="Close the comparison").click()
    expect(me.page.locator(".ovi-pair video")).to_have_count(0)


def test_words_of_others_are_words(tabs: Tabs, visitor: Callable) -> None:
    (job,) = made(tabs, EVIL)
    tabs.desk.library.set_tags(job.id, ["<script>alert(1)</script>", EVIL[:50]])
    me = visitor()
    expect(me.page.locator(".ovi-clip h3")).to_have_text(EVIL)
    expect(me.page.locator(".ovi-tags button")).to_have_count(2)
    me.page.locator(".ovi-clip").get_by_role("button", name="Name and tags").click()
    me.page.get_by_label("Name", exact=True).fill(EVIL)
    me.page.get_by_role("button", name="Save").click()
    expect(me.page.locator("dialog[open]")).to_have_count(0)
    me.page.locator(".ovi-clip").get_by_role("button", name="Delete").click()
    me.page.get_by_role("button", name="Deleted (1)").click()
    expect(me.page.locator(".ovi-things b")).to_have_text(EVIL)
    assert me.page.locator("img[src=x]").count() == 0


def test_on_a_narrow_screen_nothing_sticks_out(tabs: Tabs, visitor: Callable) -> None:
    made(tabs, *PROMPTS)
    me = visitor(viewport={"width": 390, "height": 844})
    expect(me.page.locator(".ovi-clip")).to_have_count(3)
    assert me.page.evaluate("document.documentElement.scrollWidth") <= 390
