"""Weights fetched behind the page: progress, cancelling, going on, being killed, and errors as sentences."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from ovi_studio.errors import InvalidInputError
from ovi_studio.studio.downloads import Downloads, Standing
from ovi_studio.weights import download as transfer
from ovi_studio.weights.catalog import SOURCES
from ovi_studio.weights.hub import Hub
from ovi_studio.weights.store import State, Store
from tests.hub import FakeHub, Fault

VOCODER, FLUX = SOURCES["vocoder"], SOURCES["flux-krea"]
FILE = "ext_weights/best_netG.pt"
SIZE = 2_000_000
REPOS = {
    VOCODER.repo: {FILE: random.Random(1).randbytes(SIZE), "ext_weights/v1-16.pth": b"a" * 1000},
    FLUX.repo: {pattern.replace("*", "file.bin"): b"x" for pattern in FLUX.patterns},
}
PATIENCE = 20.0  # seconds


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transfer, "_REPORT_SECONDS", 0.02)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(REPOS) as hub:
        yield hub


@pytest.fixture
def downloads(hub: FakeHub, tmp_path: Path) -> Iterator[Downloads]:
    with Downloads(Store(tmp_path / "store"), Hub(hub.url, wait_seconds=0.01)) as downloads:
        yield downloads


def wait(downloads: Downloads, until: Callable[[Standing], bool]) -> Standing:
    deadline = time.monotonic() + PATIENCE
    while not until(downloads.standing):
        assert time.monotonic() < deadline, downloads.standing
        time.sleep(0.01)
    return downloads.standing


def over(standing: Standing) -> bool:
    return not standing.busy


def is_under_way(standing: Standing) -> bool:
    return standing.stage == "running" and 0 < standing.bytes_done < standing.bytes_total


def test_a_part_is_fetched_with_progress(hub: FakeHub, downloads: Downloads) -> None:
    assert downloads.standing == Standing()
    hub.seconds_a_piece = 0.002
    downloads.fetch(["vocoder"])
    seen = wait(downloads, lambda standing: is_under_way(standing) and bool(standing.bytes_per_second))
    assert (seen.errand, seen.names, seen.bytes_total) == ("download", ("vocoder",), SIZE)
    assert seen.seconds_left
    end = wait(downloads, over)
    assert (end.stage, end.problem) == ("done", "")
    assert any("best_netG.pt is here, verified" in line for line in end.news)
    assert downloads.store.status(VOCODER).state is State.PRESENT
    with pytest.raises(InvalidInputError, match="Nothing of vocoder is missing"):
        downloads.fetch(["vocoder"])


def test_one_at_a_time(hub: FakeHub, downloads: Downloads) -> None:
    hub.seconds_a_piece = 0.01
    downloads.fetch(["vocoder"])
    for act in (lambda: downloads.fetch(["audio-vae"]), lambda: downloads.remove("vocoder")):
        with pytest.raises(InvalidInputError, match="vocoder is being seen to"):
            act()


def test_cancelled_it_keeps_what_arrived_and_goes_on_from_there(hub: FakeHub, downloads: Downloads) -> None:
    hub.seconds_a_piece = 0.01
    downloads.fetch(["vocoder"])
    wait(downloads, is_under_way)
    downloads.cancel()
    assert wait(downloads, over).stage == "cancelled"
    arrived = downloads.store.status(VOCODER).bytes_present
    assert 0 < arrived < SIZE
    hub.seconds_a_piece = 0
    downloads.fetch(["vocoder"])
    assert wait(downloads, over).stage == "done"
    assert hub.starts(FILE)[1] >= arrived


@pytest.mark.distributed
def test_killed_it_goes_on_from_there(hub: FakeHub, downloads: Downloads, tmp_path: Path) -> None:
    hub.seconds_a_piece = 0.01
    program = (
        "import sys, huggingface_hub.constants as c; c.HF_HUB_OFFLINE = False\n"
        "from pathlib import Path\n"
        "from ovi_studio.studio.downloads import Downloads\n"
        "from ovi_studio.weights.hub import Hub\n"
        "from ovi_studio.weights.store import Store\n"
        "with Downloads(Store(Path(sys.argv[1])), Hub(sys.argv[2])) as downloads:\n"
        "    downloads.fetch(['vocoder']); downloads._thread.join()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "store"), hub.url])
    deadline = time.monotonic() + PATIENCE
    while downloads.store.status(VOCODER).bytes_present < 200_000:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert downloads.standing == Standing()
    hub.seconds_a_piece = 0
    downloads.fetch(["vocoder"])
    assert wait(downloads, over).stage == "done"
    assert hub.starts(FILE)[1] >= 200_000


def test_what_goes_wrong_is_a_sentence_for_the_page(hub: FakeHub, downloads: Downloads) -> None:
    hub.faults = lambda path, _nth: Fault(status=503) if path == FILE else None
    downloads.fetch(["vocoder"])
    end = wait(downloads, over)
    assert end.stage == "failed"
    assert "could not be fetched" in end.problem
    assert end.remedy.startswith("Press Download again")
    assert any("trying again" in line for line in end.news)
    hub.faults = lambda _path, _nth: None
    downloads.fetch(["vocoder"])
    assert wait(downloads, over).stage == "done"


def test_a_gated_repository_says_where_to_accept_the_licence(hub: FakeHub, downloads: Downloads) -> None:
    hub.faults = lambda path, _nth: Fault(status=403, headers={"X-Error-Code": "GatedRepo"}) if not path else None
    downloads.fetch(["flux-krea"])
    end = wait(downloads, over)
    assert "gated" in end.problem
    assert f"https://huggingface.co/{FLUX.repo}" in end.remedy


def test_verifying_finds_damage_and_fetching_mends_it(hub: FakeHub, downloads: Downloads) -> None:
    with pytest.raises(InvalidInputError, match="is here"):
        downloads.verify(["vocoder"])
    downloads.fetch(["vocoder"])
    wait(downloads, over)
    downloads.verify(["vocoder"])
    end = wait(downloads, over)
    assert (end.errand, end.stage, end.bytes_done) == ("verify", "done", SIZE)
    (path,) = downloads.store.paths(VOCODER)
    path.write_bytes(b"z" * SIZE)
    downloads.verify(["vocoder"])
    end = wait(downloads, over)
    assert end.stage == "failed"
    assert "best_netG.pt" in end.problem
    assert "Download" in end.remedy
    downloads.fetch(["vocoder"])
    assert wait(downloads, over).stage == "done"


def test_removing(downloads: Downloads) -> None:
    downloads.fetch(["vocoder"])
    wait(downloads, over)
    assert downloads.removable("vocoder") == [VOCODER]
    assert downloads.removable("720x720_5s") == [], "what others share stays"
    assert downloads.remove("720x720_5s") == 0
    assert downloads.remove("vocoder") >= SIZE
    assert downloads.store.status(VOCODER).state is State.MISSING
    with pytest.raises(InvalidInputError, match="no model and no part"):
        downloads.remove("vocodr")


def test_closing_stops_it(hub: FakeHub, downloads: Downloads) -> None:
    hub.seconds_a_piece = 0.05
    downloads.fetch(["vocoder"])
    wait(downloads, is_under_way)
    began = time.monotonic()
    downloads.close()
    assert time.monotonic() - began < 5
    assert downloads.standing.stage == "cancelled"


def test_the_page_starts_without_the_client_of_the_hub_and_without_torch() -> None:
    code = (
        "import sys, ovi_studio.studio.downloads\n"
        "late = {'torch', 'ovi_studio.weights.download', 'ovi_studio.weights.hub'}\n"
        "sys.exit(bool(late & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
