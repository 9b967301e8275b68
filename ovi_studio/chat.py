"""A chat server of the user's: one question to it, one answer.

What comes back is a stranger's: it is bounded in size and time, no redirect is followed, and a key is sent nowhere
else and shown nowhere.
"""

import json
import math
import re
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from ovi_studio.errors import InvalidInputError, RewriteError

if TYPE_CHECKING:
    import httpx2

MAX_RESPONSE_BYTES = 1 << 20  # of a server's response; guessed: an answer, escaped, and what servers tell about it
MAX_TIMEOUT = 600.0  # seconds; guessed: a large model on a slow machine
Question: TypeAlias = str | list[dict[str, Any]]  # text, or parts: text, pictures and sound as OpenAI's API has them
_ASK_AGAIN = "Ask again, or try another model."
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_CHECK_ADDRESS = "Give one such as http://localhost:11434/v1, without a name, a password or a question mark."
_CONNECT_SECONDS = 10.0  # guessed: far more than any server needs that is there
_LONGEST_REASON = 200  # characters of what a server says went wrong; guessed


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat server: Ollama, llama.cpp, vLLM, LM Studio, or a service.

    Args:
        base_url: its address, such as "http://localhost:11434/v1"; "/v1" is understood where there is no path.
        model: the name it knows the model by.
        api_key: sent as a bearer token; shown nowhere.
        timeout: seconds for a whole answer.

    Raises:
        InvalidInputError: a field is wrong.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0

    def __post_init__(self) -> None:
        _check_address(self.base_url)
        if not self.model.strip() or len(self.model) > 200 or not self.model.isprintable():
            raise InvalidInputError("The language model has no name.", "Give the name the server lists it by.")
        if self.api_key and not re.fullmatch(r"[!-~]{1,1000}", self.api_key):
            raise InvalidInputError("The API key has characters that no key has.", "Copy it again, without spaces.")
        if not (math.isfinite(self.timeout) and 0 < self.timeout <= MAX_TIMEOUT):
            raise InvalidInputError(
                "The time to wait for an answer is wrong.", f"Give up to {MAX_TIMEOUT:.0f} seconds."
            )

    @property
    def url(self) -> str:
        """Where the question is sent."""
        address = urlsplit(self.base_url.strip())
        path = address.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
        return f"{address.scheme.lower()}://{address.netloc}{path}/chat/completions"

    def answer(self, question: Question) -> str:
        """What the model says to `question`; blocks until it is all there.

        Raises:
            RewriteError: the server cannot be reached, refuses, takes too long, or is no chat server.
        """
        return _content(self, _posted(self, question))


def _posted(endpoint: Endpoint, question: Question) -> bytes:
    """The body of the server's answer to one question."""
    import httpx2  # noqa: PLC0415  (the page starts without it)

    deadline = time.monotonic() + endpoint.timeout
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": question}], "stream": False}
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    patience = httpx2.Timeout(endpoint.timeout, connect=min(_CONNECT_SECONDS, endpoint.timeout))
    own = _is_this_machine(endpoint)  # a proxy could not reach it
    try:
        with (
            httpx2.Client(timeout=patience, follow_redirects=False, trust_env=not own) as client,
            client.stream("POST", endpoint.url, content=json.dumps(body).encode(), headers=headers) as response,
        ):
            content = _received(endpoint, response, deadline)
    except httpx2.TimeoutException as error:
        raise _too_slow(endpoint) from error
    except (httpx2.ConnectError, httpx2.ProxyError) as error:
        raise RewriteError(
            f"{endpoint.base_url} cannot be reached.", "Start the server there, or mend the address in the settings."
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise RewriteError(
            f"The connection to {endpoint.base_url} failed ({type(error).__name__}).",
            "Check that the address is a chat server's, and ask again.",
        ) from error
    if response.status_code != 200:
        raise _refusal(endpoint, response.status_code, response.headers.get("Location", ""), content)
    return content


def _received(endpoint: Endpoint, response: "httpx2.Response", deadline: float) -> bytes:
    """The body, as long as it is short enough, plain and in time."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RewriteError(f"{endpoint.base_url} answers in a packed form.", "Turn compression off in that server.")
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > MAX_RESPONSE_BYTES:
            raise RewriteError(
                f"{endpoint.base_url} answers with more than {MAX_RESPONSE_BYTES >> 20} MiB.",
                "Check that it is a chat server's address, or try another model.",
            )
        if time.monotonic() > deadline:
            raise _too_slow(endpoint)
    return bytes(content)


def _too_slow(endpoint: Endpoint) -> RewriteError:
    return RewriteError(
        f"{endpoint.base_url} gave no whole answer within {endpoint.timeout:g} seconds.",
        "Wait longer (a model may first have to be loaded), or choose a smaller model.",
    )


def _content(endpoint: Endpoint, body: bytes) -> str:
    """What the model wrote, out of the server's answer."""
    try:
        message = json.loads(body)["choices"][0]["message"]
        content = message["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise RewriteError(
            f"What answers at {endpoint.base_url} is not an OpenAI-compatible chat server.",
            "Check the address: it usually ends in /v1.",
        ) from error
    if isinstance(content, list):  # parts, as some servers send them
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str) or not content.strip():
        raise RewriteError(f"The model {endpoint.model} answered nothing.", _ASK_AGAIN)
    return content


def _refusal(endpoint: Endpoint, status: int, location: str, body: bytes) -> RewriteError:
    """The error for a status that is no answer. A refusal of the key is not repeated: servers quote keys."""
    where = endpoint.base_url
    if status in {401, 403}:
        remedy = "Check the API key in the settings, or whether this address needs one."
        return RewriteError(f"{where} does not let us in (it answered {status}).", remedy)
    if 300 <= status < 400:
        return RewriteError(
            f"{where} sends us on to {_without_secrets(location)} (it answered {status}).",
            "If you trust that address, put it in the settings.",
        )
    reason = _reason(endpoint, body)
    if status == 404:
        return RewriteError(
            f"{where} has no model {endpoint.model!r}, or no chat (it answered 404{reason}).",
            "Check the model's name, and that the address ends as the server's do, usually in /v1.",
        )
    if status == 429:
        return RewriteError(f"{where} has too much to do, or your quota is used up{reason}.", "Ask again later.")
    return RewriteError(
        f"{where} could not answer (it answered {status}{reason}).", "Look at the server's log, and ask again."
    )


def _without_secrets(address: str) -> str:
    """An address for a message: neither who is let in there nor what is asked."""
    try:
        parts = urlsplit(_CONTROL.sub("", address))
    except ValueError:
        return "nowhere"
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()[:_LONGEST_REASON] or "nowhere"


def _reason(endpoint: Endpoint, body: bytes) -> str:
    """What a server says went wrong, for a message: ": …", or "" where it says nothing readable."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail"):
        said = said.get(name, said) if isinstance(said, dict) else said
    if not isinstance(said, str) or not said.strip():
        return ""
    said = " ".join(_CONTROL.sub(" ", said).split()).rstrip(".")
    if endpoint.api_key:
        said = said.replace(endpoint.api_key, "[key]")
    return f": {said[:_LONGEST_REASON]}"


def _is_this_machine(endpoint: Endpoint) -> bool:
    host = urlsplit(endpoint.url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_address(base_url: str) -> None:
    address = base_url.strip()
    try:
        parts = urlsplit(address)
        usable = parts.scheme.lower() in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError as error:
        raise InvalidInputError("This is not the address of a chat server.", _CHECK_ADDRESS) from error
    plain = re.fullmatch(r"[!-~]{1,2000}", address) and not set("@?#\\<>\"'") & set(address)
    if not usable or not plain:  # the address may hold a password: it is not repeated
        raise InvalidInputError("This is not the address of a chat server.", _CHECK_ADDRESS)
