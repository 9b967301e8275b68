"""A table on the page: dropped, mended in place, run, watched, taken away; and hostile ones, which do nothing."""

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import PIL.Image
import pytest
from playwright.sync_api import Browser, Download, Locator, expect

from ovi_studio.errors import OutOfMemoryError
from tests.browser.workshop import VISITOR_COOKIE, Guest, Workshop, guests, workshop

pytestmark = pytest.mark.browser

THREE = "prompt,seed,name\nA red face.,1,Red\nA blue face.,x,Blue\nA green face.,3,Green\n"
RUN_PATIENCE = 60_000


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path, steps=2, step_seconds=0.2) as shop:
        yield shop


@pytest.fixture
def come(browser: Browser) -> Iterator[Callable[..., Guest]]:
    with guests(browser) as come:
        yield come


def drop(guest: Guest, *files: tuple[str, bytes]) -> None:
    """Let files fall onto the page, as a mouse does."""
    expect(guest.page.locator(".ovi-batch .ovi-trouble")).to_be_hidden()
    expect(guest.page.locator(".ovi-begin, .ovi-mending").locator("visible=true").first).to_be_visible()
    guest.page.locator(".ovi-batch").evaluate(
        """(target, files) => {
            const data = new DataTransfer();
            files.forEach(([name, bytes]) => data.items.add(new File([new Uint8Array(bytes)], name)));
            for (const kind of ["dragover", "drop"]) {
                target.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
            }
        }""",
        [[name, list(content)] for name, content in files],
    )


def cell(guest: Guest, column: str, row: int) -> Locator:
    return guest.page.get_by_role("textbox", name=f"{column}, row {row}", exact=True)


def job(guest: Guest, row: int) -> Locator:
    return guest.page.locator(".ovi-jobs li", has_text=f"Row {row}")


def taken(guest: Guest, button: str) -> Download:
    with guest.page.expect_download() as waiting:
        guest.button(button).click()
    return waiting.value


def test_three_rows_of_which_one_is_mended(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = come(shop.address)
    drop(guest, ("faces.csv", THREE.encode()))
    fault = guest.page.locator("td.ovi-wrong")
    expect(fault).to_have_count(1)
    expect(fault).to_contain_text("'x' is not a whole number. Write digits alone")
    expect(guest.button("Make 2 clips")).to_be_disabled()
    expect(guest.page.locator(".ovi-foot b")).to_have_text("1 row to mend")
    assert not shop.engines[0].requests

    guest.button("Next to mend").click()
    expect(cell(guest, "seed", 3)).to_be_focused()
    cell(guest, "seed", 3).fill("2")
    expect(fault).to_have_count(0)
    guest.button("Make 3 clips").click()

    for row in (2, 3, 4):
        expect(job(guest, row)).to_have_attribute("data-state", "done", timeout=RUN_PATIENCE)
    assert [request.seed for request in shop.engines[0].requests] == [1, 2, 3]
    expect(guest.page.locator(".ovi-batch-run header p")).to_have_text("3 of 3 done")
    expect(job(guest, 3).locator("img")).to_be_visible()

    results = taken(guest, "Results as CSV")
    assert results.suggested_filename.startswith("faces-")
    with Path(results.path()).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [(row["row"], row["status"], row["seed"]) for row in rows]
    assert told == [("2", "done", "1"), ("3", "done", "2"), ("4", "done", "3")]
    with zipfile.ZipFile(taken(guest, "All clips as a zip").path()) as archive:
        assert sorted(archive.namelist()) == ["blue.mp4", "clips.csv", "green.mp4", "red.mp4"]
    with guest.context.expect_page() as opened:
        guest.page.get_by_role("link", name="Open the clip of row 3").click()
    assert opened.value.url.endswith(".mp4")


def test_a_reload_in_the_middle_shows_the_batch_again(shop: Workshop, come: Callable[..., Guest]) -> None:
    shop.engines[0].step_seconds = 1.0
    guest = come(shop.address)
    drop(guest, ("faces.csv", THREE.replace("x", "2").encode()))
    guest.button("Make 3 clips").click()
    expect(job(guest, 2)).to_have_attribute("data-state", "running")
    guest.page.reload()
    expect(guest.page.locator(".ovi-batch-run h2")).to_have_text("faces")
    expect(guest.page.locator(".ovi-jobs li")).to_have_count(3)
    shop.engines[0].step_seconds = 0
    for row in (2, 3, 4):
        expect(job(guest, row)).to_have_attribute("data-state", "done", timeout=RUN_PATIENCE)
    guest.button("To the tables").click()
    guest.page.locator(".ovi-earlier button", has_text="3 of 3 done").click()
    expect(guest.page.locator(".ovi-jobs li")).to_have_count(3)


def test_a_table_that_was_not_run_survives_a_reload(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = come(shop.address)
    drop(guest, ("faces.csv", THREE.encode()))
    cell(guest, "prompt", 2).fill("Something else.")
    guest.page.reload()
    expect(cell(guest, "prompt", 2)).to_have_value("Something else.")
    expect(guest.page.locator("td.ovi-wrong")).to_have_count(1)
    guest.button("Put it away").click()
    guest.button("Back to the last table").click()
    expect(cell(guest, "prompt", 2)).to_have_value("Something else.")
    guest.button("Put it away").click()
    guest.page.reload()
    expect(guest.button("Choose files")).to_be_visible()
    drop(guest, ("faces.xlsx", b"PK"))
    expect(guest.page.locator(".ovi-batch .ovi-trouble")).to_contain_text(
        "faces.xlsx is a spreadsheet program's own file"
    )


def test_rows_and_columns_by_hand_and_by_keyboard(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = come(shop.address)
    guest.button("Start with an empty one").click()
    expect(guest.page.locator(".ovi-foot b")).to_have_text("No rows yet")
    cell(guest, "text_prompt", 2).press_sequentially("A dog.")
    guest.page.keyboard.press("Enter")
    expect(cell(guest, "text_prompt", 3)).to_be_focused()
    guest.page.keyboard.type("A cat.")
    guest.page.locator("[data-at=column]").select_option("takes")
    cell(guest, "takes", 3).fill("2")
    expect(guest.button("Make 3 clips")).to_be_enabled()
    guest.button("Repeat the row").nth(1).click()
    expect(guest.button("Make 5 clips")).to_be_enabled()
    guest.button("Remove the row").nth(0).click()
    expect(guest.button("Make 4 clips")).to_be_enabled()
    guest.page.get_by_label("Takes", exact=True).fill("3")
    guest.button("+ Row").click()
    guest.page.keyboard.type("A bird.")
    expect(guest.button("Make 7 clips")).to_be_enabled()
    guest.button("Remove column takes").click()
    expect(guest.button("Make 9 clips")).to_be_enabled()
    with Path(taken(guest, "Save as CSV").path()).open(encoding="utf-8-sig", newline="") as file:
        assert [row[0] for row in csv.reader(file)][:3] == ["text_prompt", "A cat.", "A cat."]


def test_pictures_come_with_the_table(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = come(shop.address)
    data = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "red").save(data, "PNG")
    drop(guest, ("t.csv", b"prompt,image_path\na,in/a.png\nb,b.png\n"), ("a.png", data.getvalue()))
    fault = guest.page.locator("td.ovi-wrong")
    expect(fault).to_contain_text("There is no picture 'b.png' here.")
    drop(guest, ("b.png", data.getvalue()))
    expect(fault).to_have_count(0)
    expect(guest.page.locator(".ovi-pictures")).to_contain_text("2 pictures here: a.png, b.png")
    drop(guest, ("evil.png", b"MZ not a picture"))
    expect(guest.page.locator(".ovi-batch .ovi-trouble")).to_contain_text("evil.png is not an image")


def test_a_batch_is_stopped_and_what_failed_tried_again(shop: Workshop, come: Callable[..., Guest]) -> None:
    shop.engines[0].error = OutOfMemoryError("There was not enough memory.", "Choose a smaller size.")
    guest = come(shop.address)
    drop(guest, ("two.csv", b"prompt\nA\nB\n"))
    guest.button("Make 2 clips").click()
    expect(job(guest, 2)).to_contain_text("There was not enough memory. Choose a smaller size.", timeout=RUN_PATIENCE)
    guest.page.get_by_role("button", name="Try the 2 failed again").wait_for(timeout=RUN_PATIENCE)
    shop.engines[0].error = None
    shop.engines[0].step_seconds = 5
    guest.button("Try the 2 failed again").click()
    expect(job(guest, 2)).to_have_attribute("data-state", "running", timeout=RUN_PATIENCE)
    guest.button("Stop the batch").click()
    expect(job(guest, 3)).to_have_attribute("data-state", "cancelled", timeout=RUN_PATIENCE)
    expect(job(guest, 2)).to_have_attribute("data-state", "cancelled", timeout=RUN_PATIENCE)
    shop.engines[0].step_seconds = 0
    guest.button("Make the 2 stopped").click()
    expect(guest.page.locator(".ovi-batch-run header p")).to_have_text("2 of 2 done", timeout=RUN_PATIENCE)


HOSTILE = (
    "prompt,<img src=x onerror=alert(1)>,name\n"
    '"<img src=x onerror=""window.hacked=1"">",1,"<script>window.hacked=1</script>"\n'
    '"=HYPERLINK(""http://example.com"")",2,"javascript:alert(1)"\n'
    '"{{7*7}} ${window.hacked=1}",3,"</textarea><img src=x onerror=window.hacked=1>"\n'
)


def test_hostile_cells_are_text(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = come(shop.address)
    drop(guest, ("<img src=x onerror=window.hacked=1>.csv", HOSTILE.encode()))
    expect(guest.button("Make 3 clips")).to_be_enabled()
    guest.button("Make 3 clips").click()
    expect(guest.page.locator(".ovi-batch-run header p")).to_have_text("3 of 3 done", timeout=RUN_PATIENCE)
    assert guest.page.evaluate("window.hacked") is None
    assert guest.page.locator(".ovi-batch img[src='x'], .ovi-batch script").count() == 0
    with Path(taken(guest, "Results as CSV").path()).open(encoding="utf-8-sig", newline="") as file:
        assert [row["prompt"] for row in csv.DictReader(file)][1].startswith("'=HYPERLINK")


def test_what_is_no_table_is_refused_with_a_sentence(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = come(shop.address)
    trouble = guest.page.locator(".ovi-batch .ovi-trouble")
    for content, words in (
        (b"", "empty"),
        (b"\0\1\2", "not a text"),
        (b'prompt\n"a', "quotes"),
        (b"x" * (3 << 20), "Split"),
    ):
        expect(guest.button("Choose files")).to_be_visible()
        guest.page.set_input_files(
            ".ovi-batch input[type=file]", {"name": "t.csv", "mimeType": "text/csv", "buffer": content}
        )
        expect(trouble).to_contain_text(words)


def test_visitors_have_their_own_batches(shop: Workshop, come: Callable[..., Guest]) -> None:
    owner = come(shop.address)
    drop(owner, ("owners.csv", b"prompt\nA secret.\n"))
    owner.button("Make 1 clip").click()
    expect(job(owner, 2)).to_have_attribute("data-state", "done", timeout=RUN_PATIENCE)
    eve = come(shop.address, visitor="eve")
    expect(eve.button("Choose files")).to_be_visible()
    expect(eve.page.locator(".ovi-earlier")).to_be_hidden()
    drop(eve, ("hers.csv", b"prompt\nMine.\n"))
    eve.button("Make 1 clip").click()
    expect(job(eve, 2)).to_have_attribute("data-state", "done", timeout=RUN_PATIENCE)
    assert str(shop.home) not in eve.page.content()


def test_raw_calls_of_a_visitor_are_refused(shop: Workshop, come: Callable[..., Guest]) -> None:
    owner = come(shop.address)
    drop(owner, ("owners.csv", b"prompt\nA secret.\n"))
    owner.button("Make 1 clip").click()
    expect(job(owner, 2)).to_have_attribute("data-state", "done", timeout=RUN_PATIENCE)
    config = httpx2.get(f"{shop.address}config", cookies={VISITOR_COOKIE: "eve"}).json()
    assert str(shop.home) not in str(config)
    widgets = [each for each in config["components"] if each["type"] == "html"]
    called = 0
    for widget in widgets:
        for function in widget["props"].get("server_fns", []):
            told = call(shop, widget["id"], function, {"batch": "0", "variant": "nano", "act": "cancel", "folder": "/"})
            assert str(shop.home) not in str(told)
            assert "secret" not in str(told).lower()
            called += 1
    assert called >= 20


def call(shop: Workshop, component: int, function: str, data: object) -> object:
    """What a visitor's program gets for calling a widget's function."""
    answer = httpx2.post(
        f"{shop.address}gradio_api/component_server",
        json={"component_id": component, "fn_name": function, "data": data, "session_hash": "eve"},
        cookies={VISITOR_COOKIE: "eve"},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()
