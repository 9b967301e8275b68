"""The owner's tab: memory, plans, weights fetched with progress, the doctor, settings; and nothing of it for others."""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from playwright.sync_api import Browser, Locator, expect

from ovi_studio.request import GenerationRequest
from ovi_studio.studio.library import Filter
from ovi_studio.weights import download
from ovi_studio.weights.catalog import SOURCES
from ovi_studio.weights.hub import Hub
from ovi_studio.weights.store import State
from tests.browser.workshop import Guest, Workshop, guests, workshop
from tests.hub import FakeHub, Fault

pytestmark = pytest.mark.browser

VOCODER, FLUX = SOURCES["vocoder"], SOURCES["flux-krea"]
FILE = "ext_weights/best_netG.pt"
RUN_PATIENCE = 60_000


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "_REPORT_SECONDS", 0.05)
    with FakeHub({VOCODER.repo: {FILE: random.Random(1).randbytes(3_000_000)}, FLUX.repo: {}}) as hub:
        yield hub


@pytest.fixture
def shop(tmp_path: Path, hub: FakeHub) -> Iterator[Workshop]:
    with workshop(tmp_path, Hub(hub.url, wait_seconds=0.01), steps=1) as shop:
        yield shop


@pytest.fixture
def come(browser: Browser) -> Iterator[Callable[..., Guest]]:
    with guests(browser) as come:
        yield come


def at_system(come: Callable[..., Guest], shop: Workshop, **options: object) -> Guest:
    guest = come(shop.address, **options)
    guest.tab("System")
    expect(guest.page.locator(".ovi-gauge").first).to_be_visible()
    expect(guest.page.locator(".ovi-models article")).to_have_count(4)
    return guest


def part(guest: Guest, name: str) -> Locator:
    """A part in the list of all, which is opened."""
    line = guest.page.locator(".ovi-parts li").filter(has=guest.page.locator(f"b:text-is('{name}')"))
    if not line.is_visible():
        guest.page.locator(".ovi-parts summary").click()
    return line


def test_a_part_is_downloaded_with_progress_through_a_reload(
    shop: Workshop, hub: FakeHub, come: Callable[..., Guest]
) -> None:
    hub.seconds_a_piece = 0.04
    guest = at_system(come, shop)
    part(guest, "vocoder").get_by_role("button", name="Download vocoder").click()
    errand = guest.page.locator(".ovi-errand")
    expect(errand).to_contain_text("Download of vocoder")
    expect(errand).to_contain_text("of 3.0 MB")
    expect(errand).to_contain_text("/s ·")
    expect(errand).to_contain_text("left")

    guest.page.reload()
    guest.tab("System")
    expect(errand).to_contain_text("Download of vocoder")
    guest.button("Cancel").click()
    expect(errand).to_contain_text("was cancelled; what has arrived stays")
    assert shop.downloads.store.status(VOCODER).state is State.PARTIAL

    hub.seconds_a_piece = 0
    resume = part(guest, "vocoder").get_by_role("button", name="Download vocoder")
    expect(resume).to_have_text("Resume")
    resume.click()
    expect(errand).to_contain_text("is done: all of it is here")
    expect(part(guest, "vocoder").locator(".ovi-chip")).to_have_text("Here")
    assert hub.starts(FILE)[-1] > 0

    part(guest, "vocoder").get_by_role("button", name="Verify vocoder").click()
    expect(errand).to_contain_text("all of it is intact")


def test_removing_is_asked_about(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = at_system(come, shop)
    part(guest, "vocoder").get_by_role("button", name="Download vocoder").click()
    remove = part(guest, "vocoder").get_by_role("button", name="Remove vocoder")
    remove.click()
    expect(guest.page.locator("dialog")).to_contain_text("3.0 MB are set free")
    guest.button("Keep it").click()
    expect(guest.page.locator("dialog")).to_be_hidden()
    remove.click()
    guest.page.keyboard.press("Escape")
    expect(guest.page.locator("dialog")).to_be_hidden()
    assert shop.downloads.store.status(VOCODER).state is State.PRESENT
    remove.click()
    guest.button("Remove it").click()
    expect(part(guest, "vocoder").locator(".ovi-chip")).to_have_text("Not here")
    assert shop.downloads.store.status(VOCODER).state is State.MISSING


def test_a_gated_part_is_explained(shop: Workshop, hub: FakeHub, come: Callable[..., Guest]) -> None:
    hub.faults = lambda path, _nth: Fault(status=403, headers={"X-Error-Code": "GatedRepo"}) if not path else None
    guest = at_system(come, shop)
    line = part(guest, "flux-krea")
    expect(line.get_by_role("link", name="its page")).to_have_attribute("href", f"https://huggingface.co/{FLUX.repo}")
    expect(line).to_contain_text("FLUX.1 [dev] Non-Commercial License")
    line.get_by_role("button", name="Download flux-krea").click()
    expect(guest.page.locator(".ovi-errand .ovi-bad")).to_contain_text("is gated")


def test_plans_and_what_became_of_them(shop: Workshop, come: Callable[..., Guest]) -> None:
    """The runs are made by hand: the fake engine neither plans nor measures."""
    for number in range(3):
        shop.desk.library.ask(GenerationRequest.create(prompt=f"<b>Run</b> {number}", seed=number))
    while shop.desk.library.find(Filter(("queued", "running"))):
        time.sleep(0.02)
    plan = shop.desk.engine.plan(GenerationRequest.create(prompt="a")).to_json() | {"seconds": 30.0}
    shop.desk.library.store.change(
        "UPDATE jobs SET plan = ?, seconds = 20, predicted_host_bytes = ?, measured_host_bytes = ?",
        [json.dumps(plan), 3 << 30, 2 << 30],
    )
    guest = at_system(come, shop)
    expect(guest.page.locator(".ovi-chart rect")).to_have_count(6)
    expect(guest.page.locator(".ovi-chart svg title").first).to_have_text("<b>Run</b> 0: planned 30 s, measured 20 s")
    guest.button("Host memory").click()
    expect(guest.page.locator(".ovi-chart svg title").first).to_contain_text("planned 3.0 GB, measured 2.0 GB")
    guest.button("Card memory").click()
    expect(guest.page.locator(".ovi-chart")).to_contain_text("Nothing of this kind was measured")
    guest.page.locator(".ovi-history summary").click()
    expect(guest.page.locator(".ovi-history tbody tr")).to_have_count(3)
    guest.page.locator("[data-at=variant]").last.select_option("720x720_5s")
    expect(guest.page.locator(".ovi-planned")).to_contain_text("992 × 512")


def test_memory_is_looked_at_only_while_somebody_looks(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = at_system(come, shop)
    asked: list[str] = []
    guest.page.on("request", lambda request: asked.append(request.post_data or ""))
    guest.page.wait_for_timeout(5_500)
    assert any("see_machine" in each for each in asked)
    guest.tab("Batch")
    guest.page.wait_for_timeout(500)
    asked.clear()
    guest.page.wait_for_timeout(5_500)
    assert not any("see_machine" in each for each in asked)


def test_the_doctor_and_the_settings(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = at_system(come, shop)
    guest.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(guest.page.locator(".ovi-doctor")).to_contain_text("ovi-studio models download 720x720_5s")
    guest.button("Copy as text").click()
    expect(guest.button("Copied")).to_be_visible()
    assert guest.page.evaluate("navigator.clipboard.readText()").startswith("Ovi Studio ")

    folder = guest.page.get_by_label("Folder for the weights")
    folder.fill("not whole")
    guest.button("Keep them there").click()
    expect(guest.page.locator(".ovi-system .ovi-trouble")).to_contain_text("not a whole path")
    folder.fill(str(shop.home / "elsewhere"))
    guest.button("Keep them there").click()
    expect(guest.page.locator(".ovi-later")).to_contain_text("From the next start on")
    guest.button("Back to the usual place").click()
    expect(folder).to_have_value(str(shop.home / "home/weights"))


def test_the_look_of_the_page_stays(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = at_system(come, shop)
    expect(guest.page.locator("body.dark")).to_have_count(0)
    guest.button("Dark").click()
    expect(guest.page.locator("body.dark")).to_have_count(1)
    guest.page.goto(shop.address)
    expect(guest.button("Choose files")).to_be_visible()
    expect(guest.page.locator("body.dark")).to_have_count(1)
    guest.tab("System")
    guest.button("As the system").click()
    guest.page.goto(shop.address)
    expect(guest.button("Choose files")).to_be_visible()
    expect(guest.page.locator("body.dark")).to_have_count(0)


def test_visitors_are_told_nothing(shop: Workshop, come: Callable[..., Guest]) -> None:
    guest = come(shop.address, visitor="eve")
    guest.tab("System")
    expect(guest.page.locator(".ovi-system .ovi-trouble")).to_contain_text("Only the owner")
    expect(guest.page.locator(".ovi-gauge, .ovi-models article, .ovi-doctor code")).to_have_count(0)
    assert str(shop.home) not in guest.page.content()
