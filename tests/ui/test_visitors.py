"""The whole page as a visitor meets it who writes requests by hand: what is somebody else's, and what no one may."""

import base64
import contextlib
import http.client
import http.server
import io
import json
import math
import os
import re
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from struct import pack
from typing import Any

import httpx2
import PIL.Image
import pytest
from gradio import processing_utils

from ovi_studio.events import CancelToken, Event
from ovi_studio.presets import save_preset, user_presets
from ovi_studio.request import GenerationRequest, ImageFrame
from ovi_studio.studio.job import Job
from ovi_studio.studio.library import Filter, Library, default_library, default_outputs
from ovi_studio.ui import passing
from ovi_studio.ui.door import MAX_BODY_BYTES, Access
from ovi_studio.ui.page import Settings
from tests.browser.engines import ShownEngine
from tests.browser.visitor import serving
from tests.ui.raw import Raw

ACCESS = Access(host="0.0.0.0", accounts=(("ann", "ann's"), ("bob", "bob's")), owner_password="the owner's")
SECRET = "what the owner says to nobody"
OWNERS_SESSION = "0wners5e55ion"


class PacedEngine(ShownEngine):
    """Takes its time over a prompt that says "slowly"."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        slow = "slowly" in request.prompt
        self.steps, self.step_seconds = (10**6, 0.05) if slow else (3, 0.0)
        return super().generate(request, cancel)


@dataclass
class Shared:
    """A page that is shared, and what of the owner's is there.

    Args:
        owner: at the page.
        home: below it lies all that is the page's; its working directory too.
        done: a clip that starts from a picture, with a name, tags and a star.
        running: a clip that takes its time.
        paused: a clip that waits.
        export: the address of a zip.
    """

    owner: Raw
    home: Path
    done: Job
    running: Job
    paused: Job
    export: str

    def visitor(self, name: str = "ann", session: str = "ann5e55ion") -> Raw:
        """Who finds nothing of the owner's and nothing of this machine in any answer."""
        never = (SECRET, str(self.home), str(Path.home()), OWNERS_SESSION, "Traceback")
        return Raw(self.owner.address, name, f"{name}'s", session, never)

    def jobs(self) -> list[Job]:
        """The owner's, as they are in the library, apart from how far they are."""
        with Library(default_library()) as library:
            jobs = library.find(Filter(owner=""))
        return [replace(job, progress=0.0, seconds_left=None, stage="") for job in jobs]

    def passing(self) -> list[bytes]:
        """All that lies where gradio would show it."""
        return [path.read_bytes() for path in (self.home / "passing").rglob("*") if path.is_file()]


def wait_for(shared: Raw, job: str, *statuses: str) -> None:
    until = time.monotonic() + 30
    while shared.server("see_shelf", {}) and status_of(shared, job) not in statuses:
        assert time.monotonic() < until
        time.sleep(0.05)


def status_of(who: Raw, job: str) -> str:
    return str(who.event("status", [job]).outputs[0]["status"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    home = tmp_path_factory.mktemp("shared")
    (home / "here").mkdir()
    (home / "here" / "letter.txt").write_text(SECRET)
    (home / "here" / ".netrc").write_text(SECRET)
    with contextlib.chdir(home / "here"), serving(home, Settings(access=ACCESS), PacedEngine) as address:
        (home / "passing" / "letter.txt").write_text(SECRET)
        save_preset(f"A preset of {SECRET}", GenerationRequest.create(prompt=SECRET))
        owner = Raw(address.replace("0.0.0.0", "127.0.0.1"), "owner", "the owner's", OWNERS_SESSION)
        picture = {"path": owner.upload("mine.png", png()).json()[0], "meta": {"_type": "gradio.FileData"}}
        owner.event("_ask", owner.filled(owner.named("_ask"), prompt=f"Done: {SECRET}", Picture=picture))
        done = owner.event("library", ["", "", 0]).outputs[0][0]["id"]
        wait_for(owner, done, "done")
        owner.server("change_clips", {"what": "label", "ids": [done], "name": SECRET, "tags": ["private"]})
        owner.server("change_clips", {"what": "favourite", "ids": [done]})
        running, paused = (
            owner.event("generate", [f"{how}: {SECRET}", *["nano", "both", "", 7, 0, 1, "auto"]]).outputs[0][0]["id"]
            for how in ("slowly", "paused")
        )
        owner.server("change_queue", {"what": "pause", "id": paused})
        wait_for(owner, running, "running")
        export = owner.server("pack_clips", {"ids": [done]})["address"]
        with Library(default_library()) as library:
            jobs = [library.get(job) for job in (done, running, paused)]
        yield Shared(owner, home, jobs[0], jobs[1], jobs[2], export)
        owner.server("change_queue", {"what": "cancel", "id": running})
    assert list((home / "home" / "cache" / "exports").glob("*.zip")) == []  # gone with the page


def png(width: int = 64, height: int = 64) -> bytes:
    data = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(data, "PNG")
    return data.getvalue()


def file_data(path: str | Path) -> dict[str, Any]:
    """A file as browsers name one to gradio."""
    return {"path": str(path), "orig_name": "face.png", "meta": {"_type": "gradio.FileData"}}


# --- What is somebody else's ----------------------------------------------------------------------------------


def test_nothing_of_the_owners_can_be_fetched(shared: Shared) -> None:
    ann, done, running = shared.visitor(), shared.done.id, shared.running.id
    until = time.monotonic() + 20
    while shared.owner.get(f"/studio/live/{running}/1.wav").status_code != 200:  # by now it is seen and heard
        assert time.monotonic() < until
        time.sleep(0.05)
    addresses = [f"studio/clip/{done}{end}" for end in (".mp4", ".wav", "/first.png", "/last.png")]
    addresses += [f"studio/thumb/{done}.jpg", f"studio/frame/{done}.jpg", shared.export]
    addresses += [f"studio/live/{running}/1.jpg", f"studio/live/{running}/1.wav"]
    for address in addresses:
        assert shared.owner.get(f"/{address}").status_code == 200, address
        assert ann.get(f"/{address}").status_code == 404, address
    news = ann.first_news()
    assert [news[part] for part in ("running", "waiting", "ended", "failed", "owner")] == [[], [], [], [], False]
    assert news["others"] == 2
    assert ann.server("see_shelf", {})["clips"] == []
    assert ann.event("library", ["", "", 0]).outputs == [[]]


PAYLOADS = {
    "as a widget's value": lambda job: {"job": job, "over": job, "at": 1, "picked": "show", "ids": [job], "clips": []},
    "as two to compare": lambda job: {"job": job, "over": job, "picked": "compare", "ids": [job, job]},
    "by itself": lambda job: job,
    "twice": lambda job: f"{job} {job}",
}


@pytest.mark.parametrize("how", PAYLOADS)
def test_no_event_takes_the_jobs_of_others(shared: Shared, how: str) -> None:
    """Every event of the page, in whatever widget it expects a job. What an answer may not hold, `Raw` knows."""
    ann, before = shared.visitor(), shared.jobs()
    calls = []
    for number, each in enumerate(ann.dependencies()):
        job = (shared.done, shared.running, shared.paused)[number % 3].id
        kinds = {"html": PAYLOADS[how](job), "textbox": job, "api": job}
        calls.append((each["id"], [kinds.get(kind) for kind in kinds_of(ann, each)]))
    refusals = [each.refusal for each in ann.events(calls)]
    assert sum("There is no job" in refusal for refusal in refusals) >= 4
    assert shared.jobs() == before


def kinds_of(who: Raw, dependency: dict[str, Any]) -> list[str]:
    return [str(who.component(number)["type"]) for number in dependency["inputs"]]


def test_what_is_not_there_and_what_is_anothers_sound_alike(shared: Shared) -> None:
    ann = shared.visitor()
    gone, theirs = "0" * len(shared.done.id), shared.done.id
    for handler in ("show", "reuse", "status", "_begin"):
        refusals = [ann.event(handler, [job]).refusal.replace(job, "it") for job in (gone, theirs)]
        assert refusals[0] == refusals[1] != ""


ACTS: dict[str, list[dict[str, Any]]] = {
    "change_clips": [
        {"what": what, "ids": ["JOB"], "name": "mine", "tags": ["mine"]}
        for what in ("favourite", "plain", "label", "tag", "delete", "restore")
    ],
    "pack_clips": [{"ids": ["JOB"]}],
    "see_trash": [{"ids": ["JOB"]}],
    "change_queue": [
        {"what": what, "id": "JOB"}
        for what in (
            "move", "pause", "resume", "cancel", "keep", "retry", "duplicate", "delete", "restore",
            "stop_after_this", "resume_all",
        )
    ],
    "see_batch": [{"batch": "JOB"}],
    "stop_batch": [{"batch": "JOB"}],
    "retry_batch": [{"batch": "JOB", "statuses": ["failed"]}],
    "batch_results": [{"batch": "JOB"}],
    "batch_zip": [{"batch": "JOB"}],
}  # fmt: skip


def test_no_function_of_a_widget_takes_the_jobs_of_others(shared: Shared) -> None:
    ann, before = shared.visitor(), shared.jobs()
    for function, asked in ACTS.items():
        for each in asked:
            for job in (shared.done, shared.running, shared.paused):
                answer = ann.server(function, json.loads(json.dumps(each).replace("JOB", job.id)))
                assert answer.get("problem") or answer == {"things": []}, (function, each, answer)
    assert shared.jobs() == before


def test_the_system_tab_is_the_owners(shared: Shared) -> None:
    ann = shared.visitor()
    system = [name for name in ann.server_functions() if name.startswith(("see_", "change_"))]
    asked = {
        "see_plan": {"variant": "nano"},
        "change_weights": {"act": "remove", "name": "nano"},
        "change_folder": {"folder": str(shared.home)},
    }
    owners = [each for each in system if each not in ACTS and each != "see_shelf"]
    assert len(owners) == 9
    for function in owners:
        answer = ann.server(function, asked.get(function, {}))
        assert answer == {"problem": "Only the owner of this page can do that. Ask them, or log in as the owner."}
    assert ann.event("open_to_owner", []).outputs[0]["visible"] is False
    assert not (shared.home / "home" / "settings.json").exists()


def test_presets_of_the_owner_are_theirs(shared: Shared) -> None:
    ann = shared.visitor()
    (own,) = user_presets()[0]
    assert ann.event("_offer", []).outputs  # `Raw` looks for the owner's
    preset = {"Start from": own.name, "Save what stands here as a preset": "Ann's"}
    for handler in ("_take_all", "_take_settings"):
        assert ann.event(handler, ann.filled(ann.named(handler), **preset)).refusal.startswith("No preset is chosen")
    assert ann.event("_tell", [own.name]).outputs is None
    assert ann.event("_store", ann.filled(ann.named("_store"), **preset)).refusal.startswith("Only the owner")
    assert len(user_presets()[0]) == 1


# --- What no visitor may --------------------------------------------------------------------------------------


def test_no_file_of_the_machine_is_given_away(shared: Shared) -> None:
    ann, here = shared.visitor(), shared.home / "here"
    frame = shared.done.request.first_frame
    assert isinstance(frame, ImageFrame)
    paths = ["/etc/passwd", default_library(), shared.done.output, frame.path, here / "letter.txt", here / ".netrc"]
    paths += [shared.home / "passing" / "letter.txt", "letter.txt", ".netrc", "../passing/letter.txt"]
    tricks = ["passing/../letter.txt", "passing/%2e%2e/letter.txt", "passing/..%2fletter.txt", "passing//etc/passwd"]
    raw = http.client.HTTPConnection(shared.owner.address.strip("/").removeprefix("http://"), timeout=30)
    cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in ann.http.cookies.items())}
    with contextlib.closing(raw):
        for path in [*map(str, paths), *tricks]:
            for route in ("file=", "file/", "proxy=", "stream/"):
                raw.request("GET", f"/gradio_api/{route}{path}", headers=cookie)  # as it stands, dots and all
                answer = raw.getresponse()
                assert answer.status in (403, 404), (route, path)
                assert SECRET.encode() not in answer.read()


@pytest.mark.parametrize("way", ["by its path", "by a way round", "in a widget's value"])
def test_no_event_copies_a_file_to_where_it_is_shown(shared: Shared, way: str) -> None:
    """Gradio copies files that it finds in a handler's answer: none may come from what a visitor wrote."""
    ann, before = shared.visitor(), sorted(shared.passing())
    calls = []
    for number, each in enumerate(ann.dependencies()):
        place = ("here/letter.txt", "here/.netrc", "passing/letter.txt", "home/library.db")[number % 4]
        file = file_data(f"passing/../../{place}" if way == "by a way round" else shared.home / place)
        value = {"clips": [file], "ids": [], "picked": file} if way == "in a widget's value" else file
        calls.append((each["id"], [value] * len(each["inputs"])))
    ann.events(calls)
    assert sorted(shared.passing()) == before


def test_a_picture_is_what_was_uploaded_and_nothing_else(shared: Shared) -> None:
    ann, ask = shared.visitor(), shared.owner.named("_ask")
    frame = shared.done.request.first_frame
    assert isinstance(frame, ImageFrame)
    for path in (frame.path, f"passing/../../home/frames/{Path(str(frame.path)).name}", "passing/mine.png"):
        for picture in (file_data(path), {"path": path}, {"path": path, "meta": None}):
            assert ann.event(ask["id"], ann.filled(ask, Picture=picture)).outputs is None
    assert ann.event("library", ["", "", 0]).outputs == [[]]


def test_a_draft_brings_no_picture_of_the_machine(shared: Shared) -> None:
    """What a browser keeps, a visitor can write."""
    ann, frame = shared.visitor(), shared.done.request.first_frame
    draft = GenerationRequest.create(prompt="mine", first_frame=frame).model_dump_json()
    recalled = ann.event("_recall", [draft])
    assert "mine" in recalled.text
    assert "/gradio_api/file=" not in recalled.text
    assert "/gradio_api/file=" in shared.owner.event("_recall", [draft]).text  # their own is shown again


def test_the_server_asks_nobody_a_visitor_names(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)

        do_GET = do_HEAD = do_POST

    async def fetch(address: str, *_: Any, **__: Any) -> str:  # gradio's own would ask public addresses only
        asked.append(address)
        return str(shared.home / "passing" / "letter.txt")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    ann = shared.visitor()
    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v1"
        rewriting = {"Theme": "rain", "Address of any OpenAI-compatible server": address, "Model": "tiny"}
        asking = ann.named("_asked")
        assert ann.event(asking["id"], ann.filled(asking, **rewriting)).refusal.startswith("Only the owner")
        everywhere = ann.events([(each["id"], [file_data(address)] * 30) for each in ann.dependencies()])
        fetching = [each.refusal for each in everywhere if "fetches nothing" in each.refusal]
        assert len(fetching) == len(ann.dependencies())
        for route in ("file=", "file/", "proxy="):
            assert ann.get(f"/gradio_api/{route}{address}").status_code in (403, 404)
        server.shutdown()
    assert asked == []


def test_what_gradio_offers_besides_is_closed(shared: Shared) -> None:
    ann = shared.visitor()
    for path in ("deep_link?session_hash=x", "custom_component/a/client/b/c", "vibe-code", "runs"):
        assert ann.get(f"/gradio_api/{path}").status_code == 404, path
    assert ann.post("/gradio_api/process_recording", files={"video": b"x"}).status_code == 404
    assert ann.get("/monitoring").status_code in (403, 404)


# --- What cannot be -------------------------------------------------------------------------------------------

JUNK: dict[str, Any] = {
    "nothing": None,
    "a number": math.inf,
    "lists": [[]],
    "mappings": {"job": [], "over": {}, "picked": 1, "ids": "x", "data": [[1]], "text": "\0"},
}


@pytest.mark.parametrize("what", JUNK)
def test_wrong_types_are_refused_and_break_nothing(
    shared: Shared, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ann, before, junk = shared.visitor(), shared.jobs(), JUNK[what]
    answers = ann.events([(each["id"], [junk] * len(each["inputs"])) for each in ann.dependencies()])
    told = capfd.readouterr().err
    # an exception is gradio's own, raised before our handler was called
    ours = re.findall(r'File ".*?/ovi_studio/(?!ui/(?:handling|passing)\.py)\S+", line \d+, in \w+', told)
    assert ours == []
    assert all(each.outputs is not None or "library.db" not in each.refusal for each in answers)
    for function in ann.server_functions():
        assert isinstance(ann.server(function, junk), dict)
    assert shared.jobs() == before


def test_half_wrong_forms_are_refused_with_a_sentence(shared: Shared) -> None:
    ann, ask = shared.visitor(), shared.owner.named("_ask")
    wrong: dict[str, list[Any]] = {
        "Steps": [30.5, "many", -1, [1], math.nan],
        "Shift": ["x", {}],
        "Takes": [0, -3, 1e9, 2.5],
        "Its seed": [7],
        "dataframe": [
            {"headers": ["a", "b", "c"], "data": [["../../x", 1, "both"]], "metadata": None},
            {"headers": ["a", "b", "c"], "data": [["x", "strong", "both"]], "metadata": None},
        ],
        "How the machine is used": ["quick", None],
        "prompt": [7, "", ["x"]],
    }
    for name, values in wrong.items():
        for value in values:
            answer = ann.event(ask["id"], ann.filled(ask, **{name: value}))
            assert answer.outputs is None, (name, value)
            assert answer.refusal.endswith("."), (name, value, answer)
    assert ann.event("library", ["", "", 0]).outputs == [[]]


# --- Uploads --------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def wide_png(side: int) -> bytes:
    """A picture of `side` × `side` white pixels, of one bit each."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * ((side + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A small picture with a remark that unpacks to 200 MB."""
    packer = zlib.compressobj(9)
    remark = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    whole = png()
    return whole[:33] + chunk(b"zTXt", b"Comment\0\0" + remark) + whole[33:]


def zip_bomb() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clips.csv", bytes(100 << 20))
    return data.getvalue()


UPLOADS = {
    "a picture of 30,000 pixels": (lambda: wide_png(30_000), "too many pixels"),
    "a renamed executable": (lambda: Path(sys.executable).resolve().read_bytes()[: 1 << 20], "not an image"),
    "a zip bomb": (zip_bomb, "not an image"),
    "a picture with a bomb in its remarks": (text_bomb, "broken"),
    "nothing": (lambda: b"", "empty"),
}


@pytest.mark.parametrize("what", UPLOADS)
def test_uploads_that_are_no_pictures_are_refused_with_a_sentence(shared: Shared, what: str) -> None:
    ann = shared.visitor()
    make, words = UPLOADS[what]
    data = make()
    answer = ann.upload("face.png", data)
    assert answer.status_code == 200
    picture = file_data(answer.json()[0])
    asking, looking = ann.named("_ask"), ann.named("_look_ahead")
    refusal = ann.event(asking["id"], ann.filled(asking, Picture=picture)).refusal
    assert words in refusal
    assert "face.png" in refusal
    assert words in ann.event(looking["id"], ann.filled(looking, Picture=picture)).text
    kept = ann.server("keep_picture", {"name": "face.png", "data": base64.b64encode(data).decode()})
    assert words in kept["problem"]


def test_tables_that_are_none_are_refused_with_a_sentence(shared: Shared) -> None:
    ann = shared.visitor()
    for data in (zip_bomb(), Path(sys.executable).resolve().read_bytes()[: 1 << 20], bytes(1 << 20), b"\xff" * 4096):
        answer = ann.server("read_table", {"name": "table.csv", "data": base64.b64encode(data).decode()})
        problems = [answer.get("problem", "")]
        if "header" in answer:
            asked = {"header": answer["header"], "rows": answer["rows"], "variant": "nano", "takes": 1}
            checked = ann.server("check_table", asked)
            problems = [fault["problem"] for fault in checked.get("head", [])] or [checked.get("problem", "")]
        assert any(problems), answer


def test_two_gigabytes_are_refused(shared: Shared) -> None:
    ann = shared.visitor()
    raw = http.client.HTTPConnection(shared.owner.address.strip("/").removeprefix("http://"), timeout=30)
    cookie = "; ".join(f"{name}={value}" for name, value in ann.http.cookies.items())
    with contextlib.closing(raw):
        raw.putrequest("POST", "/gradio_api/upload")
        raw.putheader("Cookie", cookie)
        raw.putheader("Content-Type", "multipart/form-data; boundary=x")
        raw.putheader("Content-Length", str(2 << 30))
        raw.endheaders()
        answer = raw.getresponse()
        assert (answer.status, answer.read().decode()) == (413, "At most 96 MB can be sent at once.")
    before = len(shared.passing())

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="face.png"\r\n\r\n'
        for _ in range((MAX_BODY_BYTES >> 20) + 8):
            yield bytes(1 << 20)

    with contextlib.suppress(httpx2.TransportError):  # the connection may end before the answer
        sent = ann.http.post(
            "/gradio_api/upload", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert sent.status_code >= 400
    assert len(shared.passing()) <= before + 1
    assert ann.get("/config").status_code == 200


def test_visitors_cannot_fill_the_disk(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "VISITORS_BYTES", 3 << 20)
    bob = shared.visitor("bob", "b0b5e55ion")
    statuses = [bob.upload("noise.bin", os.urandom(1 << 20)).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert "a day" in bob.upload("noise.bin", b"x").text
    assert shared.owner.upload("noise.bin", b"x").status_code == 200


def test_an_upload_is_named_by_nothing_of_the_machine(shared: Shared) -> None:
    ann = shared.visitor()
    name = ann.upload("my face.png", png()).json()[0]
    assert re.fullmatch(r"passing/[0-9a-f]{64}/my face\.png", name)
    assert ann.get(f"/gradio_api/file={name}").content == png()
    forms = [each for each in ann.dependencies() if "image" in kinds_of(ann, each)]
    ann.events([(each["id"], ann.filled(each, prompt="Mine", Picture=file_data(name))) for each in forms])
    (mine,) = ann.event("library", ["", "", 0]).outputs[0]
    assert mine["title"] == "Mine"
    shown = ann.event("reuse", [mine["id"]]).text
    assert re.search(r'"url": ?"[^"]*/gradio_api/file=passing/', shown)
    ann.server("change_queue", {"what": "cancel", "id": mine["id"]})
    assert default_outputs() / "visitors" in Library(default_library()).get(mine["id"]).output.parents
