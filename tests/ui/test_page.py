"""The page opens, or says why not."""

import os
import socket
from pathlib import Path

import httpx2
import pytest

from ovi_studio.errors import EngineError
from ovi_studio.ui.page import Settings, running_page
from tests.fakes import FakeEngine


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path))


def test_a_taken_port_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with (
            pytest.raises(EngineError, match="choose another with --port"),
            running_page(Settings(port=other.getsockname()[1]), FakeEngine),
        ):
            pass


def test_a_proxy_for_the_world_is_not_asked_for_our_own_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "intranet")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    with running_page(Settings(), FakeEngine) as served:
        assert httpx2.get(served.address).status_code == 200
    assert os.environ["no_proxy"].split(",")[:2] == ["intranet", "localhost"]


def test_no_click_is_sent_twice() -> None:
    """See `on_any`."""
    with running_page(Settings(), FakeEngine) as served:
        listening = httpx2.get(f"{served.address}config").json()["dependencies"]
    waiting = [each for each in listening if each["trigger_mode"] == "always_last"]
    assert len(waiting) >= 3
    assert [target for each in waiting for target in each["targets"] if target[1] == "click"] == []
