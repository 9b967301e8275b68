"""The door: who is who, and what is turned away. Real servers on loopback, a fake engine behind them."""

import contextlib
import http.client
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from ovi_studio.errors import InvalidInputError
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.visits import Limits
from ovi_studio.ui.door import MAX_BODY_BYTES, OWNER_NAME, Access, Door, Visits, middleware
from ovi_studio.ui.programs import Programs
from tests.fakes import FakeEngine

ACCOUNTS = (("ann", "ann's password"), ("bob", "bob's password"))
PUBLIC = Access(host="0.0.0.0", accounts=ACCOUNTS, owner_password="the owner's")


class Served:
    """A server with the endpoints for programs."""

    def __init__(self, desk: Desk, door: Door, port: int) -> None:
        self.desk = desk
        self.door = door
        self.address = f"http://127.0.0.1:{port}"

    def client(self, name: str, password: str) -> Client:
        return Client(self.address, auth=(name, password), verbose=False)

    def cookies(self, name: str, password: str) -> httpx2.Client:
        browser = httpx2.Client(base_url=self.address, timeout=30)
        browser.get("/")
        assert browser.post("/login", data={"username": name, "password": password}).status_code == 200
        return browser


@contextlib.contextmanager
def served(folder: Path, access: Access, limits: Limits | None = None, **fake: Any) -> Iterator[Served]:
    door = Door(access)
    with Desk(folder / "library.db", folder / "work", lambda work: FakeEngine(work, **fake)) as desk:
        with gr.Blocks(analytics_enabled=False) as page:
            gr.Markdown("a page")
            Programs(Visits(desk, door, limits), desk.engine.plan)
        server, address, _ = page.launch(
            server_name=access.host, prevent_thread_lock=True, quiet=True, ssr_mode=False,
            auth=door.lets_in if door.guarded else None, app_kwargs={"middleware": middleware(door)},
        )  # fmt: skip
        door.opened(server)
        try:
            yield Served(desk, door, int(address.rstrip("/").rsplit(":", 1)[1]))
        finally:
            page.close(verbose=False)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("public")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVI_STUDIO_HOME", str(folder))
        with served(folder, PUBLIC, Limits(waiting=3, takes=2, prompt=200, steps=60)) as up:
            yield up


def wait_until_done(client: Client, job: str) -> dict[str, Any]:
    for _ in range(200):
        told = client.predict(job, api_name="/status")
        if told["status"] not in ("queued", "running"):
            return dict(told)
        time.sleep(0.05)
    raise AssertionError("the job did not end")


# --- Who may open what ----------------------------------------------------------------------------------------


def test_a_page_for_others_needs_a_password() -> None:
    for access in (Access(host="0.0.0.0"), Access(share=True)):
        with pytest.raises(InvalidInputError, match="no password"):
            Door(access)
    assert not Door(Access(host="0.0.0.0", open_to_all=True)).guarded
    assert not Door(Access()).guarded
    with pytest.raises(InvalidInputError, match="account"):
        Door(Access(share=True, accounts=((OWNER_NAME, "x"),)))


def test_an_account_and_a_made_up_password_go_together() -> None:
    door = Door(Access(host="0.0.0.0", accounts=(("ann", "hers"),), made_up=True))
    assert door.lets_in("ann", "hers")
    assert door.lets_in("bob", door.visitor_password)
    assert not door.lets_in("ann", door.visitor_password)
    assert not door.lets_in("owner", door.visitor_password)


def test_made_up_passwords_have_128_bits_and_are_never_the_same() -> None:
    doors = [Door(Access(share=True, made_up=True)) for _ in range(50)]
    secrets = [each for door in doors for each in (door.visitor_password, door.owner_password, door.owner_token)]
    assert len(set(secrets)) == len(secrets)
    assert all(len(secret) >= 22 for secret in secrets)  # of 64 letters: 132 bits


def test_on_loopback_everybody_is_the_owner_and_other_names_are_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path))
    with served(tmp_path, Access()) as up:
        job = Client(up.address, verbose=False).predict("A red face.", api_name="/generate")[0]
        assert up.desk.library.get(job["id"]).owner == ""
        rebound = httpx2.get(up.address, headers={"Host": "evil.example"})
        assert rebound.status_code == 421


# --- A visitor ------------------------------------------------------------------------------------------------


def test_visitors_see_and_cancel_their_own_only(public: Served) -> None:
    ann, bob = public.client(*ACCOUNTS[0]), public.client(*ACCOUNTS[1])
    owner = public.client(OWNER_NAME, "the owner's")
    job = ann.predict("A red face.", api_name="/generate")[0]["id"]
    assert wait_until_done(ann, job)["status"] == "done"
    assert [each["id"] for each in ann.predict(api_name="/library")] == [job]
    assert bob.predict(api_name="/library") == []
    for name in ("/status", "/cancel"):
        with pytest.raises(AppError, match="There is no job"):
            bob.predict(job, api_name=name)
    assert owner.predict(job, api_name="/status")["status"] == "done"
    # the same person again, with a new browser
    assert [each["id"] for each in public.client(*ACCOUNTS[0]).predict(api_name="/library")] == [job]


def test_with_one_password_for_all_browsers_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path))
    with served(tmp_path, Access(host="0.0.0.0", made_up=True)) as up:
        first, second = (up.cookies("carol", up.door.visitor_password) for _ in range(2))
        people = [up.door.person(dict(browser.cookies)) for browser in (first, second)]
        assert people[0] != people[1]
        assert all(not person.is_owner for person in people)
        with pytest.raises(InvalidInputError, match="not logged in"):
            up.door.person({"ovi-visitor": first.cookies["ovi-visitor"]})


def test_limits_of_a_visitor(public: Served) -> None:
    bob = public.client(*ACCOUNTS[1])
    too_much = {
        "too long": {"prompt": "word " * 100},
        "too many steps": {"prompt": "A face.", "steps": 100},
        "takes at once": {"prompt": "A face.", "takes": 3},
        "not possible": {"prompt": "A face.", "size": "5000x5000"},
    }
    for fields in too_much.values():
        with pytest.raises(AppError):
            bob.predict(api_name="/generate", **fields)
    with pytest.raises(AppError, match=r"may ask for 2 clips at once\. Take fewer"):
        bob.predict(api_name="/generate", **too_much["takes at once"])
    assert bob.predict(api_name="/library", status="") == []
    with pytest.raises(AppError, match="no status 'finished'"):
        bob.predict(api_name="/library", status="finished")


def test_nothing_tells_where_files_are(public: Served) -> None:
    ann = public.client(*ACCOUNTS[0])
    told = [ann.predict(api_name="/library", status=""), ann.predict(api_name="/plan")]
    browser = public.cookies(*ACCOUNTS[0])
    pages = [browser.get("/").text, browser.get("/config").text, browser.get("/gradio_api/info").text]
    home = str(public.desk.library.store.path.parent)
    assert all(home not in text for text in (json.dumps(told), *pages))


# --- Raw requests ---------------------------------------------------------------------------------------------


def test_without_a_login_there_is_nothing(public: Served) -> None:
    stranger = httpx2.Client(base_url=public.address)
    for path in ("/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd"):
        assert stranger.get(path).status_code == 401, path
    assert stranger.post("/gradio_api/run/generate", json={"data": ["A face."]}).status_code == 401
    assert stranger.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}).status_code == 401
    assert stranger.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401


def test_files_of_the_server_cannot_be_fetched(public: Served) -> None:
    browser = public.cookies(*ACCOUNTS[0])
    library = public.desk.library.store.path
    for path in (
        "/etc/passwd",
        str(library),
        f"{public.desk.library.store.path.parent}/clips",
        "../../../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc/passwd",
    ):
        assert browser.get(f"/gradio_api/file={path}").status_code in (403, 404), path
    for address in ("http://127.0.0.1:1/secret", "https://example.com/", "HTTP://example.com", "http%3A//example.com"):
        assert browser.get(f"/gradio_api/file={address}").status_code == 403, address


def test_another_site_cannot_speak_for_a_visitor(public: Served) -> None:
    browser = public.cookies(*ACCOUNTS[0])
    answer = browser.post(
        "/gradio_api/run/generate", json={"data": ["A face."]}, headers={"Origin": "https://evil.example"}
    )
    assert answer.status_code == 403


def test_more_than_can_be_held_is_refused(public: Served) -> None:
    browser = public.cookies(*ACCOUNTS[0])
    raw = http.client.HTTPConnection(public.address.removeprefix("http://"), timeout=30)
    with contextlib.closing(raw):
        raw.putrequest("POST", "/gradio_api/component_server")
        raw.putheader("Content-Length", str(2 << 30))
        raw.endheaders()
        assert raw.getresponse().status == 413
    told = httpx2.Client(base_url=public.address, cookies=browser.cookies)
    with contextlib.closing(told):

        def endless() -> Iterator[bytes]:
            for _ in range((MAX_BODY_BYTES >> 20) + 8):
                yield b"x" * (1 << 20)

        with contextlib.suppress(httpx2.TransportError):  # the connection may end before the answer
            assert told.post("/gradio_api/component_server", content=endless(), timeout=60).status_code >= 400
    assert browser.get("/config").status_code == 200  # and the server goes on


def test_wrong_passwords_are_slowed_and_written_down(public: Served, caplog: pytest.LogCaptureFixture) -> None:
    waits = []
    with caplog.at_level(logging.WARNING, logger="ovi_studio.ui.door"):
        for _ in range(4):
            started = time.monotonic()
            answer = httpx2.post(f"{public.address}/login", data={"username": "ann", "password": "x"}, timeout=30)
            waits.append(time.monotonic() - started)
            assert answer.status_code == 400
    assert waits[3] > 1.9  # 0, 0.5, 1, 2 seconds
    assert sum("wrong password from" in record.message for record in caplog.records) == 4
    assert public.cookies(*ACCOUNTS[0])  # and the right one forgives them
    started = time.monotonic()
    public.cookies(*ACCOUNTS[1])
    assert time.monotonic() - started < 1.5


# --- What is documented ---------------------------------------------------------------------------------------


def test_the_documented_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path))
    text = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    with served(tmp_path, Access()) as up:
        exec(code.replace("http://127.0.0.1:7860", up.address), {})
    assert "'status': " in capsys.readouterr().out


# --- Many at once ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_clients_lose_nothing_and_mix_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.fifty_clients import run_load  # noqa: PLC0415  (starts no server when it is imported)

    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path))
    with served(tmp_path, Access()) as up:
        told = run_load(up.address, clients=50, seconds=15)
    assert told["lost"] == 0
    assert told["mixed"] == 0
    assert told["done"] >= 50
