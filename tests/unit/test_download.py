import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from ovi_studio.cli import main
from ovi_studio.errors import CancelledError, WeightsError
from ovi_studio.events import CancelToken
from ovi_studio.variants import get_variant
from ovi_studio.weights import download as downloads
from ovi_studio.weights.catalog import SOURCES
from ovi_studio.weights.download import (
    DownloadFinished,
    DownloadProgress,
    DownloadStarted,
    FileFinished,
    Retrying,
    download,
    to_json,
)
from ovi_studio.weights.hub import Hub
from ovi_studio.weights.store import Finding, State, Store
from tests.hub import REVISION, FakeHub, Fault

VOCODER, TEXT_ENCODER, FLUX = SOURCES["vocoder"], SOURCES["text-encoder"], SOURCES["flux-krea"]
FILE = "ext_weights/best_netG.pt"
WAN = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


REPOS = {
    VOCODER.repo: {FILE: noise(300_000), "ext_weights/v1-16.pth": noise(200_000, 1), "README.md": b"hello"},
    WAN: {
        **{f"text_encoder/model-0000{n}-of-00006.safetensors": noise(100_000 + n, n) for n in range(1, 7)},
        "text_encoder/config.json": b'{"d_model": 4096}',
        "text_encoder/model.safetensors.index.json": b"{}" * 500,
        "tokenizer/tokenizer.json": b'{"model": {}}' * 1000,
        "vae/config.json": b"",
        "vae/diffusion_pytorch_model.safetensors": noise(50_000, 9),
    },
    FLUX.repo: {pattern.replace("*", "file.bin"): noise(1000, 7) for pattern in FLUX.patterns},
}  # fmt: skip


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "_REPORT_SECONDS", 0.02)


@pytest.fixture
def hub():
    with FakeHub(REPOS) as hub:
        yield hub


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def client(hub, **options):
    return Hub(hub.url, **{"wait_seconds": 0.005, **options})


def fetch(hub, store, *sources, **options):
    return list(download(sources or (VOCODER,), store, client(hub), **options))


def left(store):
    """Files in the store, but for the empty ones that locks are."""
    return {path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if path.is_file()} - {
        f".locks/{name}.lock" for name in SOURCES
    }


def assert_never_complete(store, source=VOCODER, path=FILE):
    assert store.status(source).state is not State.PRESENT
    assert not store.path(source, path).exists()
    assert not any(name.endswith(".record.json") for name in left(store))
    with pytest.raises(WeightsError, match="models download"):
        store.paths(source)


def assert_whole(store, source, repo):
    assert store.status(source).state is State.PRESENT
    for path, file in zip(store.paths(source), store.listing(source).files, strict=True):
        content = REPOS[repo][file.path]
        assert path.read_bytes() == content
        record = json.loads(path.with_name(path.name + ".record.json").read_text())
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
        assert (record["size"], record["revision"], record["repo"]) == (len(content), REVISION, repo)
    assert not any(".part" in name for name in left(store))


# --- All goes well ----------------------------------------------------------------------------------------


def test_a_file_arrives_with_its_record(hub, store):
    events = fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)
    assert left(store) == {
        f"{VOCODER.repo}/{FILE}", f"{VOCODER.repo}/{FILE}.record.json", ".listings/vocoder.json"
    }  # fmt: skip
    started = next(event for event in events if isinstance(event, DownloadStarted))
    assert (started.files, started.bytes_done, started.bytes_total) == (1, 0, 300_000)
    assert events[-1] == DownloadFinished(("vocoder",))
    assert [json.loads(json.dumps(to_json(event)))["event"] for event in events][-1] == "download finished"


def test_a_sharded_source_arrives_whole_in_parallel(hub, store):
    hub.seconds_a_piece = 0.01
    events = fetch(hub, store, TEXT_ENCODER, parallel_files=3)
    assert_whole(store, TEXT_ENCODER, WAN)
    assert len(store.paths(TEXT_ENCODER)) == 8
    assert 1 < hub.most_at_once <= 3
    assert {event.path for event in events if isinstance(event, FileFinished)} == {
        path for path in REPOS[WAN] if path.startswith("text_encoder/")
    }


def test_empty_and_small_files_are_verified_by_gits_hash(hub, store):
    fetch(hub, store, SOURCES["video-vae"])
    assert_whole(store, SOURCES["video-vae"], WAN)
    hub.faults = lambda path, _nth: Fault(swap=path == "tokenizer/tokenizer.json")
    with pytest.raises(WeightsError, match="checksum"):
        fetch(hub, store, SOURCES["tokenizer"])
    assert store.status(SOURCES["tokenizer"]).state is State.MISSING


def test_what_is_there_is_not_asked_for_again(hub, store):
    fetch(hub, store)
    before = len(hub.requests), hub.listings
    assert fetch(hub, store)[-1] == DownloadFinished(("vocoder",))
    assert (len(hub.requests), hub.listings) == before


def test_progress_tells_speed_and_time_left(hub, store):
    hub.seconds_a_piece = 0.02
    progress = [event for event in fetch(hub, store) if isinstance(event, DownloadProgress)]
    done = [event.bytes_done for event in progress]
    assert done == sorted(done)
    assert done[-1] == progress[-1].bytes_total == 300_000
    middle = next(event for event in progress if event.bytes_per_second and 100_000 < event.bytes_done < 250_000)
    assert 16_384 / 0.02 / 4 < middle.bytes_per_second < 16_384 / 0.02 * 1.5
    left_by_speed = (300_000 - middle.bytes_done) / middle.bytes_per_second
    assert middle.seconds_left == pytest.approx(left_by_speed)


def test_a_file_put_there_by_hand_is_adopted(hub, store):
    path = store.path(VOCODER, FILE)
    path.parent.mkdir(parents=True)
    path.write_bytes(REPOS[VOCODER.repo][FILE])
    assert store.status(VOCODER).state is State.MISSING  # without a record nothing is taken for complete
    fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)
    assert hub.requests == []


def test_a_wrong_file_put_there_by_hand_is_replaced(hub, store):
    path = store.path(VOCODER, FILE)
    path.parent.mkdir(parents=True)
    path.write_bytes(noise(300_000, 5))
    fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)


# --- Interrupted ------------------------------------------------------------------------------------------


def test_dropped_connections_are_resumed(hub, store):
    hub.faults = lambda path, nth: Fault(drop_after=70_000) if path and nth < 3 else None
    events = fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)
    assert len([event for event in events if isinstance(event, Retrying)]) == 3
    starts = hub.starts(FILE)
    assert starts[0] == 0 < starts[1] < starts[2] < starts[3]
    assert hub.sent == 300_000  # nothing twice


def test_a_body_that_ends_early_without_a_word_is_resumed(hub, store):
    hub.faults = lambda path, nth: Fault(chunked=True, surplus=-100_000) if path and nth == 0 else None
    fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)
    assert hub.starts(FILE) == [0, 200_000]


def test_endless_drops_end_in_an_error_and_the_next_run_resumes(hub, store):
    hub.faults = lambda path, _nth: Fault(drop_after=10_000) if path else None
    with pytest.raises(WeightsError, match="it resumes") as caught:
        list(download([VOCODER], store, client(hub, retries=2)))
    assert caught.value.exit_code == 2
    assert len(hub.requests) == 3
    assert_never_complete(store)
    assert store.status(VOCODER).state is State.PARTIAL
    kept = store.status(VOCODER).bytes_present
    assert 0 < kept == hub.sent
    hub.faults = lambda _path, _nth: None
    started = next(event for event in fetch(hub, store) if isinstance(event, DownloadStarted))
    assert (started.bytes_done, started.bytes_total) == (kept, 300_000)
    assert hub.starts(FILE)[-1] == kept
    assert_whole(store, VOCODER, VOCODER.repo)


def test_a_long_file_may_drop_more_often_than_that_if_it_gains(store):
    with FakeHub({VOCODER.repo: {FILE: noise(6 << 20)}}) as hub:
        hub.faults = lambda path, _nth: Fault(drop_after=(1 << 20) + 100_000) if path else None
        list(download([VOCODER], store, client(hub, retries=1)))
        assert len(hub.requests) == 6
    assert store.status(VOCODER).state is State.PRESENT


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_passing_refusals_are_tried_again(hub, store, status):
    hub.faults = lambda _path, nth: Fault(status=status) if nth < 2 else None  # of the listing and of the file
    events = fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)
    assert [event.problem for event in events if isinstance(event, Retrying)] == [f"it answered {status}"] * 4


def test_416_starts_the_file_anew(hub, store):
    hub.faults = lambda path, nth: {0: Fault(drop_after=50_000), 1: Fault(status=416)}.get(nth) if path else None
    fetch(hub, store)
    assert hub.starts(FILE) == [0, 50_000, 0]
    assert_whole(store, VOCODER, VOCODER.repo)


def test_a_server_that_ignores_ranges_is_heard_from_the_start(hub, store):
    hub.faults = lambda path, nth: (Fault(drop_after=50_000), Fault(ignore_range=True))[nth] if path else None
    events = fetch(hub, store)
    assert hub.starts(FILE) == [0, 50_000]
    assert_whole(store, VOCODER, VOCODER.repo)
    assert [event for event in events if isinstance(event, DownloadProgress)][-1].bytes_done == 300_000


def test_another_piece_than_was_asked_for_is_not_taken(hub, store):
    wrong = Fault(headers={"Content-Range": "bytes 10-299999/300000"})
    hub.faults = lambda path, nth: {0: Fault(drop_after=50_000), 1: wrong}.get(nth) if path else None
    fetch(hub, store)
    assert hub.starts(FILE) == [0, 50_000, 0]
    assert_whole(store, VOCODER, VOCODER.repo)


def test_cancelling_keeps_what_has_arrived(hub, store):
    hub.seconds_a_piece = 0.02
    cancel = CancelToken()
    events = download([VOCODER], store, client(hub), cancel=cancel)
    next(event for event in events if isinstance(event, DownloadProgress) and event.bytes_done > 50_000)
    cancel.cancel()
    with pytest.raises(CancelledError):
        list(events)
    assert_never_complete(store)
    assert store.status(VOCODER).bytes_present > 50_000
    hub.seconds_a_piece = 0
    fetch(hub, store)
    assert hub.starts(FILE)[-1] > 50_000
    assert_whole(store, VOCODER, VOCODER.repo)


def test_closing_the_iterator_stops_the_threads(hub, store):
    hub.seconds_a_piece = 0.02
    events = download([TEXT_ENCODER], store, client(hub))
    assert isinstance(next(events), DownloadStarted)
    events.close()
    sent = hub.sent
    time.sleep(0.1)
    assert hub.sent - sent < 8 * 32_768  # what was in flight
    assert store.status(TEXT_ENCODER).state is not State.PRESENT


def test_a_started_revision_is_finished_though_the_repository_moves_on(hub, store):
    hub.faults = lambda path, _nth: Fault(status=500) if path.endswith(".json") else None
    with pytest.raises(WeightsError):
        list(download([TEXT_ENCODER], store, client(hub, retries=0), parallel_files=1))
    assert store.status(TEXT_ENCODER).state is State.PARTIAL
    hub.faults = lambda _path, _nth: None
    hub.revision = "d" * 40
    hub.revisions.add(hub.revision)
    fetch(hub, store, TEXT_ENCODER)
    assert store.listing(TEXT_ENCODER).revision == REVISION
    assert {request.revision for request in hub.requests} == {REVISION}


def test_a_revision_that_is_gone_gives_way_to_the_newest(hub, store):
    hub.faults = lambda path, _nth: Fault(drop_after=50_000) if path else None
    with pytest.raises(WeightsError):
        list(download([VOCODER], store, client(hub, retries=0)))
    hub.faults = lambda _path, _nth: None
    hub.revision, hub.revisions = "d" * 40, {"d" * 40}
    fetch(hub, store)
    assert store.listing(VOCODER).revision == "d" * 40
    assert hub.starts(FILE) == [0, 50_000]  # the content is the same, so its beginning still counts


# --- Refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (401, {}, "check your token"),
        (403, {}, "check your token"),
        (404, {"X-Error-Code": "EntryNotFound"}, "has no ext_weights/best_netG.pt"),
        (404, {}, "HF_ENDPOINT"),
        (416, {}, "it resumes"),
        (451, {}, "answered 451"),
        (500, {}, "it answered 500"),
    ],
)
def test_a_refused_file_is_one_clear_error_and_leaves_nothing(hub, store, status, headers, says):
    hub.faults = lambda path, _nth: Fault(status=status, headers=headers) if path else None
    with pytest.raises(WeightsError) as caught:
        fetch(hub, store)
    assert says in str(caught.value)
    assert caught.value.exit_code == 2
    assert left(store) == set()
    assert {path.name for path in store.folder.iterdir()} == {".locks"}


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refused_listing_touches_nothing(hub, store, status):
    hub.faults = lambda path, _nth: Fault(status=status) if not path else None
    with pytest.raises(WeightsError):
        fetch(hub, store)
    assert not store.folder.exists()


@pytest.mark.parametrize(("status", "headers"), [(401, {"X-Error-Code": "GatedRepo"}), (403, {})])
def test_a_gated_repository_is_explained(hub, store, status, headers):
    hub.faults = lambda path, _nth: Fault(status=status, headers=headers) if path else None
    with pytest.raises(WeightsError) as caught:
        fetch(hub, store, FLUX)
    for part in ("gated", "https://huggingface.co/black-forest-labs/FLUX.1-Krea-dev", "hf auth login", "HF_TOKEN"):
        assert part in str(caught.value)
    assert left(store) == set()


def test_a_token_is_sent(hub, store, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(hub, store)
    assert {request.headers.get("authorization") for request in hub.requests} == {"Bearer hf_secret"}


def test_one_refused_file_stops_the_others(hub, store):
    hub.seconds_a_piece = 0.05
    hub.faults = lambda path, _nth: Fault(status=404) if path.endswith("config.json") else None
    with pytest.raises(WeightsError, match=r"config\.json"):
        fetch(hub, store, TEXT_ENCODER, parallel_files=8)
    assert hub.sent < 400_000  # of 600,000
    assert store.status(TEXT_ENCODER).state is not State.PRESENT


def test_a_repository_without_the_file(store):
    with FakeHub({VOCODER.repo: {"README.md": b""}}) as hub, pytest.raises(WeightsError, match=f"no file {FILE}"):
        fetch(hub, store)
    assert not store.folder.exists()


def test_nobody_there(store):
    with pytest.raises(WeightsError, match="could not be fetched"):
        list(download([VOCODER], store, Hub("http://127.0.0.1:9", retries=1, wait_seconds=0.01)))
    with pytest.raises(WeightsError, match="HF_ENDPOINT"):
        list(download([VOCODER], store, Hub("gopher://127.0.0.1")))
    assert not store.folder.exists()


def test_something_else_than_a_hub(hub, store):
    hub.info = lambda repo: {"hello": "world"}
    with pytest.raises(WeightsError, match="not a hub"):
        fetch(hub, store)


def test_offline_mode_is_explained(hub, store, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        fetch(hub, store)
    assert not store.folder.exists()


def test_a_full_disk_is_seen_first(hub, store, monkeypatch):
    free = 299_999

    def usage(_path):
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(WeightsError, match="GB free"):
        fetch(hub, store)
    assert not store.folder.exists()
    assert hub.requests == []
    hub.faults = lambda path, nth: Fault(drop_after=50_000) if path and nth == 0 else None
    free = 300_000
    with pytest.raises(WeightsError):
        list(download([VOCODER], store, client(hub, retries=0)))
    free = 250_000  # what is already there needs no room any more
    fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_closed_folder(hub, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WeightsError, match="cannot be"):
        fetch(hub, Store(tmp_path / "store"))


# --- Lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (Fault(headers={"Content-Length": "299000"}, surplus=-1000), "sends 299000"),
        (Fault(headers={"Content-Length": "300100"}, surplus=100), "sends 300100"),
        (Fault(chunked=True, surplus=100), "more of"),
        (Fault(chunked=True, surplus=-100), "it resumes"),
        (Fault(swap=True), "checksum"),
    ],
)
def test_wrong_length_or_content_is_never_left_looking_complete(hub, store, lie, says):
    # A resumed answer lies like the first: there is never more than what the first one left out.
    hub.faults = lambda path, nth: (lie if nth == 0 else Fault(status=500)) if path else None
    with pytest.raises(WeightsError, match=says):
        list(download([VOCODER], store, client(hub, retries=1)))
    assert_never_complete(store)
    hub.faults = lambda _path, _nth: None
    fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)


@pytest.mark.parametrize(
    "change",
    [
        lambda sibling: sibling.update(size=sibling["size"] + 1000),
        lambda sibling: sibling.update(size=sibling["size"] - 1000),
        lambda sibling: sibling.update(lfs={**sibling.get("lfs", {}), "size": 1, "sha256": "0" * 64, "pointerSize": 1}),
        lambda sibling: sibling.update(size=None),
        lambda sibling: (sibling.update(blobId=None), sibling.pop("lfs", None)),
    ],
)
def test_a_listing_that_lies_never_looks_complete_and_mends_itself(hub, store, change):
    hub.edit = change
    with pytest.raises(WeightsError):
        fetch(hub, store)
    assert_never_complete(store)
    hub.edit = lambda _sibling: None
    fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)


@pytest.mark.parametrize("name", ["tokenizer/..", "tokenizer/a\\..\\b", "tokenizer/c:evil"])
def test_unsafe_names_are_refused(store, name):
    with FakeHub({WAN: {"tokenizer/tokenizer.json": b"{}", name: b"evil"}}) as hub, pytest.raises(WeightsError):
        fetch(hub, store, SOURCES["tokenizer"])
    assert left(store) == set()
    assert hub.requests == []


# --- Processes --------------------------------------------------------------------------------------------


def start(hub, home, *arguments):
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "OVI_STUDIO_HOME": str(home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "ovi_studio.cli", "models", "download", "vocoder", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_download_is_resumed(hub, tmp_path):
    store = Store(tmp_path / "weights")
    hub.seconds_a_piece = 0.05
    killed = start(hub, tmp_path)
    for _ in range(600):
        if store.status(VOCODER).bytes_present > 100_000:
            break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = store.status(VOCODER).bytes_present
    assert 100_000 < kept < 300_000
    assert_never_complete(store)
    hub.seconds_a_piece = 0
    code, _, err = finish(start(hub, tmp_path))
    assert code == 0, err
    assert_whole(store, VOCODER, VOCODER.repo)
    assert hub.requests[-1].start == kept
    assert hub.requests[-1].sent == 300_000 - kept


def test_two_processes_fetch_a_file_once(hub, tmp_path):
    hub.seconds_a_piece = 0.05
    both = [start(hub, tmp_path, "--json"), start(hub, tmp_path, "--json")]
    results = [finish(process) for process in both]
    assert [code for code, _, _ in results] == [0, 0], results
    assert_whole(Store(tmp_path / "weights"), VOCODER, VOCODER.repo)
    assert hub.sent == 300_000
    events = [[json.loads(line)["event"] for line in out.splitlines()] for _, out, _ in results]
    assert sorted("file finished" in names for names in events) == [False, True]
    assert any("waiting" in names for names in events)


def test_two_threads_on_one_store(hub, store):
    hub.seconds_a_piece = 0.01
    first = download([VOCODER], store, client(hub))
    assert isinstance(next(first), DownloadStarted)
    second = download([VOCODER], store, client(hub))
    assert to_json(next(second)) == {"event": "waiting", "source": "vocoder"}
    assert list(first)[-1] == list(second)[-1] == DownloadFinished(("vocoder",))
    assert hub.sent == 300_000


# --- The store --------------------------------------------------------------------------------------------


def test_verify_finds_damage_and_download_mends_it(hub, store):
    fetch(hub, store, VOCODER, TEXT_ENCODER)
    shard = store.paths(TEXT_ENCODER)[2]
    content = bytearray(shard.read_bytes())
    content[500] ^= 1
    shard.write_bytes(content)
    assert store.status(TEXT_ENCODER).state is State.PRESENT  # by length and record alone
    found = dict(store.verify(TEXT_ENCODER))
    assert [path for path, finding in found.items() if finding is Finding.DAMAGED] == [shard]
    assert set(dict(store.verify(VOCODER)).values()) == {Finding.INTACT}
    assert store.status(TEXT_ENCODER).state is State.PARTIAL
    before = hub.sent
    fetch(hub, store, TEXT_ENCODER)
    assert hub.sent - before == len(content)
    assert_whole(store, TEXT_ENCODER, WAN)
    assert set(dict(store.verify(TEXT_ENCODER)).values()) == {Finding.INTACT}


def test_verify_takes_back_a_damaged_file_that_was_put_right(hub, store):
    fetch(hub, store)
    path = store.path(VOCODER, FILE)
    path.write_bytes(noise(300_000, 8))
    assert dict(store.verify(VOCODER)) == {path: Finding.DAMAGED}
    path.write_bytes(REPOS[VOCODER.repo][FILE])
    assert dict(store.verify(VOCODER)) == {path: Finding.INTACT}
    assert store.status(VOCODER).state is State.PRESENT
    path.unlink()
    assert dict(store.verify(VOCODER)) == {path: Finding.MISSING}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"size": "many"}', b"[1]", b"\xff\0"])
def test_broken_records_count_as_none(hub, store, damage):
    fetch(hub, store)
    for name in [name for name in left(store) if name.endswith(".json")]:
        (store.folder / name).write_bytes(damage)
    assert store.status(VOCODER).state is State.MISSING
    fetch(hub, store)
    assert_whole(store, VOCODER, VOCODER.repo)
    assert len(hub.requests) == 1  # the file itself was right, and was adopted


def test_remove_deletes_what_is_ours_and_nothing_else(hub, store):
    fetch(hub, store, VOCODER, SOURCES["audio-vae"])
    mine = store.folder_of(VOCODER) / "ext_weights" / "my notes.txt"
    mine.write_text("keep")
    freed = store.remove(VOCODER)
    assert freed > 300_000
    assert store.status(VOCODER).state is State.MISSING
    assert_whole(store, SOURCES["audio-vae"], VOCODER.repo)
    assert mine.read_text() == "keep"
    store.remove(SOURCES["audio-vae"])
    assert left(store) == {f"{VOCODER.repo}/ext_weights/my notes.txt"}
    mine.unlink()
    store.remove(VOCODER)
    assert store.remove(VOCODER) == 0


def test_remove_leaves_a_file_without_a_record(store):
    path = store.path(VOCODER, FILE)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    assert store.remove(VOCODER) == 0
    assert path.read_bytes() == b"mine"


def test_remove_takes_beginnings_too(hub, store):
    hub.faults = lambda path, _nth: Fault(drop_after=50_000) if path else None
    with pytest.raises(WeightsError):
        list(download([VOCODER], store, client(hub, retries=0)))
    assert store.remove(VOCODER) == 50_000
    assert left(store) == set()


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_remove_takes_the_link_and_leaves_what_it_points_at(hub, store, tmp_path):
    fetch(hub, store)
    path, elsewhere = store.path(VOCODER, FILE), tmp_path / "elsewhere.pt"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert store.status(VOCODER).state is State.PRESENT
    store.remove(VOCODER)
    assert not path.is_symlink()
    assert elsewhere.stat().st_size == 300_000


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_remove_never_leaves_the_store(hub, store, tmp_path):
    fetch(hub, store)
    outside = tmp_path / "outside"
    folder = store.folder_of(VOCODER)
    folder.rename(outside)
    folder.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises(WeightsError, match="leads out of the store"):
        store.remove(VOCODER)
    assert sorted(outside.rglob("*")) == before


def test_remove_waits_for_nobody(hub, store):
    hub.seconds_a_piece = 0.01
    events = download([VOCODER], store, client(hub))
    next(events)
    while store.status(VOCODER).bytes_present == 0:
        next(events)
    with pytest.raises(WeightsError, match="another process"):
        store.remove(VOCODER)
    assert list(events)[-1] == DownloadFinished(("vocoder",))
    assert_whole(store, VOCODER, VOCODER.repo)


# --- The command line -------------------------------------------------------------------------------------


@pytest.fixture
def models(hub, tmp_path, monkeypatch, capfd):
    """`ovi-studio models …` → exit code, lines on stdout, stderr."""
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path))
    monkeypatch.setattr(downloads, "Hub", lambda: client(hub))

    def run(*arguments):
        try:
            code = main(["models", *arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return run


def test_list_tells_present_missing_and_partial(models, hub):
    code, out, _ = models("list")
    assert code == 0
    states = dict(line.split(maxsplit=1) for line in out)
    assert "needs no download" in states["nano"]
    assert states["960x960_10s"] == "missing  about 38.6 GB"
    assert "optional: makes a first frame" in states["flux-krea"]
    assert models("download", "vocoder")[0] == 0
    (row,) = [row for row in json.loads(models("list", "--json")[1][0])["models"] if row["name"] == "960x960_10s"]
    assert (row["state"], row["bytes_present"], row["exact"]) == ("partial", 300_000, False)


def test_a_whole_model_is_present_in_the_end(models, hub):
    hub.repos["chetwinlow1/Ovi"] = {"model_960x960.safetensors": noise(5000, 3), "model.safetensors": noise(10)}
    code, _, err = models("download", "960x960_5s")
    assert code == 0, err
    assert hub.starts("model_960x960.safetensors") == [0]
    assert hub.starts("model.safetensors") == []  # another variant's
    out = dict(line.split(maxsplit=1) for line in models("list")[1])
    assert out["960x960_5s"].startswith("present")
    assert out["960x960_10s"].startswith("partial")
    assert models("verify")[0] == 0
    report = json.loads(models("show", "960x960_5s", "--json")[1][0])
    parts = {part["name"]: part for part in report["parts"]}
    assert parts["fusion-960x960_5s"]["bytes_present"] == parts["fusion-960x960_5s"]["bytes_total"] == 5000
    assert parts["video-vae-original"]["instead_of"] == "video-vae"


def test_a_part_that_was_chosen_fills_its_slot(models, hub):
    hub.repos["rkfg/Ovi-fp8_quantized"] = {"model_fp8_e4m3fn.safetensors": noise(5000, 4)}
    assert models("download", "720x720_5s", "fusion-720x720_5s-fp8")[0] == 0
    assert dict(line.split(maxsplit=1) for line in models("list")[1])["720x720_5s"].startswith("present")
    assert models("download", "720x720_5s")[0] == 0  # nothing is missing: the other one is not fetched as well
    assert not any(request.path == "model.safetensors" for request in hub.requests)


def test_show_names_sources_and_licences(models):
    out = "\n".join(models("show", "720x720_5s")[1])
    for text in (
        "https://huggingface.co/chetwinlow1/Ovi",
        "CC-BY-NC-4.0",
        "instead of fusion-720x720_5s",
        "Apache-2.0",
    ):
        assert text in out
    nano = "\n".join(models("show", "nano")[1])
    assert ("untrained: expect noise" in nano) is not get_variant("nano").trained
    assert "needs no download" in nano


def test_download_nano_says_that_it_is_here(models, hub):
    code, _, err = models("download", "nano")
    assert (code, hub.requests) == (0, [])
    assert "needs no download" in err


def test_where_moves_the_weights(models, tmp_path):
    assert models("where")[1][0].split() == ["weights", str(tmp_path / "weights")]
    models("download", "vocoder")
    _, out, err = models("where", "--set", str(tmp_path / "large disk"), "--json")
    assert json.loads(out[0])["weights"] == str(tmp_path / "large disk")
    assert "stays there" in err
    models("download", "vocoder")
    assert Store(tmp_path / "large disk").status(VOCODER).state is State.PRESENT
    assert models("where", "--reset", "--json")[0] == 0
    assert json.loads(models("where", "--json")[1][0])["weights"] == str(tmp_path / "weights")
    assert models("where", "--reset", "--set", "x")[0] == 2


def test_verify_reports_damage(models, tmp_path):
    models("download", "vocoder")
    path = Store(tmp_path / "weights").path(VOCODER, FILE)
    path.write_bytes(noise(300_000, 8))
    code, out, err = models("verify", "vocoder", "--json")
    assert code == 2
    assert json.loads(out[0]) == {"source": "vocoder", "path": str(path), "finding": "damaged"}
    assert "models download vocoder" in err
    assert models("download", "vocoder")[0] == 0
    assert models("verify", "vocoder")[1] == [f"intact   {path}"]


def test_remove_asks(models, tmp_path, monkeypatch):
    models("download", "vocoder", "audio-vae")
    path = Store(tmp_path / "weights").path(VOCODER, FILE)
    assert models("remove", "vocoder")[0] == 2  # nobody to ask
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, gone in (("\n", False), ("n\n", False), ("y\n", True)):
        monkeypatch.setattr(sys.stdin, "readline", lambda answer=answer: answer, raising=False)
        models("remove", "vocoder")
        assert path.exists() is not gone
    assert models("remove", "720x720_5s", "--yes")[0] == 0  # the audio VAE serves other models too
    assert Store(tmp_path / "weights").status(SOURCES["audio-vae"]).state is State.PRESENT
    assert models("remove", "audio-vae", "--yes")[0] == 0
    assert Store(tmp_path / "weights").status(SOURCES["audio-vae"]).state is State.MISSING


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["download", "giant"], "'giant'"),
        (["show", "giant"], "'giant'"),
        (["remove", "vocodr", "--yes"], "Did you mean 'vocoder'?"),
        (["verify", "giant"], "'giant'"),
        (["download", "vocoder", "--parallel", "0"], "--parallel"),
        (["download"], "NAME"),
        ([], "COMMAND"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(models, tmp_path, arguments, says):
    code, out, err = models(*arguments)
    assert (code, out) == (2, [])
    assert says in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_shows_speed_and_time_left(models, hub, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    hub.seconds_a_piece = 0.02
    code, _, err = models("download", "vocoder")
    assert code == 0
    assert "kB of 300 kB" in err
    assert "kB/s, 0:0" in err
    assert "verified" in err


def test_a_failed_download_is_one_line(models, hub):
    hub.faults = lambda path, _nth: Fault(status=403) if path else None
    code, out, err = models("download", "flux-krea")
    assert (code, out) == (2, [])
    assert "gated" in err.splitlines()[-1]
    assert "Traceback" not in err
