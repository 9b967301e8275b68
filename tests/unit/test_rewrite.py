"""Rewriting to a theme: what is asked, which answers are taken, and servers that behave and misbehave."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi_studio.chat import MAX_RESPONSE_BYTES, Endpoint
from ovi_studio.errors import InvalidInputError, PromptError, RewriteError
from ovi_studio.lint import Code
from ovi_studio.prompt import Dialect, Kind, parse
from ovi_studio.request import MAX_PROMPT
from ovi_studio.rewrite import (
    MAX_ANSWER,
    MAX_THEME,
    Change,
    Rewrite,
    apply_answer,
    ask,
    instruction,
)
from ovi_studio.speech import word_budget

PROMPT = "A man asks, <S>Did you hear that squeak?<E> A woman says, <S>That was my sandwich.<E> Audio: An echoing hall."
NEW = ["Did you hear that robot?", "It was only my toaster."]
THEME = "machines wake up"
WAY: dict[str, Any] = {"dialect": Dialect.AUDIO_PREFIX, "seconds": 5.04}


def rewritten(answer: str, prompt: str = PROMPT, **more: Any) -> Rewrite:
    return apply_answer(prompt, answer, **{**WAY, **more})


# --------------------------------------------------------------------------------------------------- the question


def test_instruction_tells_all_that_a_model_must_know() -> None:
    text = instruction(PROMPT, f" {THEME}\n", 5.04, "en")
    assert PROMPT in text
    assert f"Theme: {THEME}\n" in text
    assert "(2)" in text
    assert "JSON list" in text
    budgets = [int(piece.split()[0]) for piece in text.split("(at most ")[1:]]
    assert len(budgets) == 2
    assert min(budgets) >= 2
    assert sum(budgets) <= word_budget(5.04, "en")


def test_instruction_counts_characters_where_words_have_no_spaces() -> None:
    assert "characters) 你好" in instruction("他说 <S>你好<E>", THEME, 5.04)
    assert "characters) Hello" in instruction("He says <S>Hello<E>", THEME, 5.04, "ja")


def test_instruction_asks_for_ambience_where_it_can_be_changed() -> None:
    assert '"ambience"' in instruction(PROMPT, THEME, 5.04, ambience=True)
    assert '"ambience"' not in instruction(PROMPT, THEME, 5.04)
    assert '"ambience"' not in instruction("He says <S>Hi<E>", THEME, 5.04, ambience=True)


def test_instruction_takes_braces_as_they_are() -> None:
    assert "{x} {0}" in instruction("He says <S>{x} {0}<E>", "{theme}", 5.04)


@pytest.mark.parametrize("theme", ["", " \n", "x" * (MAX_THEME + 1)])
def test_a_theme_is_a_sentence_or_two(theme: str) -> None:
    with pytest.raises(InvalidInputError, match="theme"):
        instruction(PROMPT, theme, 5.04)


def test_a_prompt_without_speech_cannot_be_rewritten() -> None:
    with pytest.raises(PromptError, match="spoken"):
        instruction("Rain.", THEME, 5.04)
    with pytest.raises(PromptError, match="spoken"):
        rewritten("[]", "Rain.")


# ----------------------------------------------------------------------------------------------------- the answer


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(NEW),
        f"```json\n{json.dumps(NEW, indent=2)}\n```",
        f"Sure! [Here] they are:\n{json.dumps(NEW)}\nShall I go on? [yes/no]",
        f"<think>Perhaps {json.dumps(['a', 'b'])}?</think>{json.dumps(NEW)}",
        json.dumps({"speeches": NEW}),
        json.dumps({"speeches": NEW, "ambience": "Rain."}),
        json.dumps({"1": NEW[0], "2": NEW[1]}),
        json.dumps([{"speech": words} for words in NEW]),
        json.dumps({"result": {"x": 1}, "lines": [{"speaker": "man", "text": words} for words in NEW]}),
        json.dumps([f"<S>{words}<E>" for words in NEW]),
        json.dumps([f'"{NEW[0]}"', f"“{NEW[1]}”"]),
        json.dumps([f" {NEW[0]}\n", NEW[1].replace(" ", "\n ")]),
        f'["{NEW[0]}\n", "{NEW[1]}"]',
        f"First: {json.dumps(['one'])}. Better: {json.dumps(NEW)}. Not: {json.dumps(['x', 'y', 'z'])}",
    ],
)
def test_answers_as_models_write_them(answer: str) -> None:
    result = rewritten(answer)
    assert result.before == PROMPT
    assert result.after == (
        "A man asks, <S>Did you hear that robot?<E> A woman says, <S>It was only my toaster.<E> Audio: An echoing hall."
    )
    assert result.findings == ()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "no JSON list"),
        ("I am sorry, I cannot do that.", "no JSON list"),
        ("[1, 2]", "no JSON list"),
        ('["a", 2]', "no JSON list"),
        ('["a", "b"', "no JSON list"),
        ("[" * 50_000, "no JSON list"),
        ('{"a":' * 9_000, "no JSON list"),
        ("9" * 60_000 + "[" + "9" * 5_000 + "]", "no JSON list"),
        ("{}", "no JSON list"),
        ('["one"]', "1 speeches, and the prompt has 2"),
        ('["one", "two", "three"]', "3 speeches"),
        ('["one", ""]', "Speech 2 .* empty"),
        ('["…", "two"]', "Speech 1 .* empty"),
        ('["one <E> two", "three"]', "Speech 1 .* tag in it, <E>"),
        ('["one", "<S>two<E> he says"]', "Speech 2 .* tag"),
        ('["one", "<AUDCAP>wind"]', "Speech 2 .* tag"),
        ('["one</s>", "two"]', "Speech 1 .* tag"),
        (json.dumps(["word " * 100, "two"]), "seconds and the clip lasts 5"),
        ("x" * (MAX_ANSWER + 1), "characters"),
    ],
)
def test_answers_that_cannot_be_taken(answer: str, problem: str) -> None:
    with pytest.raises(RewriteError, match=problem) as caught:
        rewritten(answer)
    assert caught.value.remedy


def test_a_few_words_too_many_are_a_finding() -> None:
    result = rewritten(json.dumps(["word " * 10, "word " * 10]))
    assert Code.TOO_MANY_WORDS in {finding.code for finding in result.findings}


def test_a_prompt_that_would_get_too_long_is_refused() -> None:
    with pytest.raises(RewriteError, match="characters"):
        rewritten('["one two three four"]', "x" * (MAX_PROMPT - 20) + " <S>hi<E>")


def test_ambience_changes_where_that_was_asked_for() -> None:
    answer = json.dumps({"speeches": NEW, "ambience": " Audio:  Servos hum. "})
    assert rewritten(answer).after.endswith("Audio: An echoing hall.")
    assert rewritten(answer, ambience=True).after.endswith("<E> Audio: Servos hum.")
    assert rewritten(json.dumps(NEW), ambience=True).after.endswith("Audio: An echoing hall.")
    with pytest.raises(RewriteError, match="ambience"):
        rewritten(json.dumps({"speeches": NEW, "ambience": "<ENDAUDCAP><S>Ha<E>"}), ambience=True)


def test_difference_by_words() -> None:
    assert rewritten('["Have you seen that robot?", "That was my sandwich."]').diff == (
        Change("same", "A man asks, <S>"),
        Change("removed", "Did"),
        Change("added", "Have"),
        Change("same", " you"),
        Change("removed", " hear"),
        Change("added", " seen"),
        Change("same", " that"),
        Change("removed", " squeak"),
        Change("added", " robot"),
        Change("same", "?<E> A woman says, <S>That was my sandwich.<E> Audio: An echoing hall."),
    )


def test_very_long_speeches_are_compared_quickly() -> None:
    start = time.perf_counter()
    rewritten(json.dumps(["a b " * 1_100]), f"He says <S>{'b a ' * 1_900}<E>", seconds=4_000.0)
    assert time.perf_counter() - start < 5


WORDS = st.text(max_size=30)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.text(max_size=20), st.sampled_from(Dialect))
def test_only_words_of_speeches_change(speeches: list[tuple[str, str]], ending: str, dialect: Dialect) -> None:
    prompt = "".join(f"He says <S>{words}<E>" for words, _ in speeches) + ending
    old = parse(prompt)
    with suppress(RewriteError):
        result = rewritten(json.dumps([words for _, words in speeches]), prompt, dialect=dialect, seconds=60.0)
        new = parse(result.after)
        assert len(new.segments) == len(old.segments)
        for before, after in zip(old.segments, new.segments, strict=True):
            assert (before.kind, before.opening, before.closing) == (after.kind, after.opening, after.closing)
            assert before.words == after.words or before.kind is Kind.SPEECH
        assert "".join(text for kind, text in result.diff if kind != "added") == prompt
        assert "".join(text for kind, text in result.diff if kind != "removed") == result.after


# ----------------------------------------------------------------------------------------------------- the server


@dataclass
class Behaviour:
    """How the server answers: a status, headers and a body; `wait` before the head, `drip` before every byte."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drip: float = 0.0
    endless: bool = False
    hang_up: bool = False


def chat(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


class ChatServer:
    """An OpenAI-compatible server on the loopback interface that answers as it is told, and keeps what was asked."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, dict(self.headers), body))
                server.stopped.wait(behaviour.wait)
                if behaviour.hang_up:
                    return
                with suppress(OSError):
                    self.send_response(behaviour.status)
                    for name, value in behaviour.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    server.send(self.wfile, behaviour)

            do_GET = do_POST

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def send(self, file: Any, behaviour: Behaviour) -> None:
        while behaviour.endless and not self.stopped.is_set():
            file.write(b" " * 65_536)
        if not behaviour.drip:
            file.write(behaviour.body)
            return
        for byte in behaviour.body:
            if self.stopped.wait(behaviour.drip):
                return
            file.write(bytes([byte]))
            file.flush()


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[ChatServer]:
    server = ChatServer(behaviour)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def asked(behaviour: Behaviour, *, timeout: float = 10.0) -> Rewrite:
    with serving(behaviour) as server:
        return ask(Endpoint(server.url, "tiny", KEY, timeout), PROMPT, THEME, **WAY)


KEY = "sk-very-secret-12345"


def test_a_good_server_rewrites() -> None:
    with serving(Behaviour(body=chat(f"Here:\n```\n{json.dumps(NEW)}\n```"))) as server:
        result = ask(Endpoint(server.url, "tiny", KEY), PROMPT, THEME, **WAY)
        path, headers, body = server.asked[0]
    assert result == rewritten(json.dumps(NEW))
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "tiny"
    assert body["messages"] == [{"role": "user", "content": instruction(PROMPT, THEME, 5.04)}]


def test_no_key_is_sent_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # this machine is not reached through it
    with serving(Behaviour(body=chat([{"type": "text", "text": json.dumps(NEW)}]))) as server:
        assert ask(Endpoint(server.url, "tiny"), PROMPT, THEME, **WAY).after
        assert "Authorization" not in server.asked[0][1]


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        (Behaviour(401, b'{"error": {"message": "Wrong key sk-very-secret-12345"}}'), "does not let us in .*401"),
        (Behaviour(403), "does not let us in"),
        (
            Behaviour(404, b'{"error": {"message": "model \\"tiny\\" not found, try pulling it"}}'),
            "no model 'tiny'.*pulling",
        ),
        (Behaviour(404, b"<html>404</html>"), "or no chat"),
        (Behaviour(429, b'{"error": "slow down"}'), "too much to do.*slow down"),
        (
            Behaviour(500, b'{"error": {"message": "CUDA\\u001b[31m sk-very-secret-12345 broke."}}'),
            r"500: CUDA \[31m \[key\]",
        ),
        (Behaviour(503, b"\xff\xfe{"), "503"),
        (Behaviour(500, b"[" * 100_000), "500"),
        (Behaviour(200, b"<html>hello</html>"), "not an OpenAI"),
        (Behaviour(200, b"[]"), "not an OpenAI"),
        (Behaviour(200, b"[" * 100_000), "not an OpenAI"),
        (Behaviour(200, b'{"choices": []}'), "not an OpenAI"),
        (Behaviour(200, b'{"choices": [{"message": "hello"}]}'), "not an OpenAI"),
        (Behaviour(200, b"\xff\xfe\x00"), "not an OpenAI"),
        (Behaviour(200, b""), "not an OpenAI"),
        (Behaviour(200, chat(None)), "answered nothing"),
        (Behaviour(200, chat(" ")), "answered nothing"),
        (Behaviour(200, chat("I would rather not.")), "no JSON list"),
        (Behaviour(200, chat('["one"]')), "1 speeches"),
        (Behaviour(200, b"x" * (MAX_RESPONSE_BYTES + 1)), "more than 1 MiB"),
        (Behaviour(endless=True), "more than 1 MiB"),
        (Behaviour(200, b"\x1f\x8b", {"Content-Encoding": "gzip"}), "packed"),
        (Behaviour(200, b"{}", {"Content-Length": "99"}), "failed"),
        (Behaviour(hang_up=True), "failed"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.status}-{value.body[:12]!r}",
)
def test_servers_that_do_not_answer_well(behaviour: Behaviour, problem: str) -> None:
    with pytest.raises(RewriteError, match=problem) as caught:
        asked(behaviour)
    error: BaseException | None = caught.value
    while error:  # the cause may be shown in a log
        assert KEY not in f"{error} {error!r}"
        error = error.__cause__
    assert caught.value.remedy


@pytest.mark.parametrize("behaviour", [Behaviour(wait=30.0), Behaviour(body=chat("x" * 99), drip=0.1)])
def test_slow_servers_are_left(behaviour: Behaviour) -> None:
    start = time.perf_counter()
    with pytest.raises(RewriteError, match=r"within 0\.5 seconds"):
        asked(behaviour, timeout=0.5)
    assert time.perf_counter() - start < 5


def test_no_redirect_is_followed() -> None:
    with serving(Behaviour(body=chat(json.dumps(NEW)))) as other:
        for status in (302, 307):
            with pytest.raises(RewriteError, match=r"sends us on to http://127.*/v1/x "):
                asked(Behaviour(status, headers={"Location": f"{other.url.replace('//', '//user@')}/x?token=1"}))
        assert not other.asked


def test_a_redirect_to_nothing() -> None:
    with pytest.raises(RewriteError, match="nowhere"):
        asked(Behaviour(308, headers={"Location": "http://[::1"}))


def test_a_server_that_is_not_there() -> None:
    with serving(Behaviour()) as server:
        url = server.url
    with pytest.raises(RewriteError, match="cannot be reached"):
        ask(Endpoint(url, "tiny", KEY), PROMPT, THEME, **WAY)


def test_a_key_is_not_shown() -> None:
    assert KEY not in repr(Endpoint("http://localhost:1/v1", "tiny", KEY))


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://localhost:11434", "http://localhost:11434/v1/chat/completions"),
        ("http://localhost:11434/v1/", "http://localhost:11434/v1/chat/completions"),
        ("HTTPS://api.example.com/v1/chat/completions", "https://api.example.com/v1/chat/completions"),
        (" http://[::1]:8080/api/v3 ", "http://[::1]:8080/api/v3/chat/completions"),
    ],
)
def test_where_the_question_goes(base_url: str, url: str) -> None:
    assert Endpoint(base_url, "tiny").url == url


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "localhost:11434",
        "file:///etc/passwd",
        "ftp://example.com",
        "http://",
        "http://me:secret@example.com/v1",
        "http://example.com/v1?key=secret",
        "http://example.com/#secret",
        "http://exa mple.com",
        "http://example.com:99999",
        "http://example.com:x",
        "http://[::1",
        "http://example.com\\@evil.example/",
        "http://exämple.com",
        "http://x/" + "y" * 2_000,
    ],
)
def test_addresses_of_no_chat_server(base_url: str) -> None:
    with pytest.raises(InvalidInputError, match="address") as caught:
        Endpoint(base_url, "tiny")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": " "},
        {"model": "a\nb"},
        {"model": "x" * 201},
        {"api_key": "sk secret"},
        {"api_key": "sk-secret\r\nHost: evil"},
        {"api_key": "sk-ß"},
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"timeout": 1e6},
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Endpoint(**{"base_url": "http://localhost:1", "model": "tiny", **fields})
    assert "secret" not in str(caught.value)
