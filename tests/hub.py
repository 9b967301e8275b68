"""A small hub on the loopback interface, which can be told to misbehave.

with FakeHub({"owner/name": {"path": b"content"}}) as hub: … hub.url … hub.requests
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "c0ffee" + "0" * 34
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>.+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_PIECE = 16 << 10


@dataclass(frozen=True)
class Fault:
    """What goes wrong with an answer.

    Args:
        status: answered instead of the content.
        headers: of that answer, or in place of the right ones.
        drop_after: bytes of the body after which the connection is closed.
        surplus: bytes sent after the end of the file; a negative number leaves bytes out.
        chunked: no Content-Length: where the body ends, the file seems to end.
        ignore_range: send the whole file, whatever was asked for.
        swap: change the content, keeping its length.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    surplus: int = 0
    chunked: bool = False
    ignore_range: bool = False
    swap: bool = False


@dataclass(frozen=True)
class Request:
    """A request for a file: where it was to start, and the bytes that were sent."""

    path: str
    start: int
    sent: int
    revision: str
    headers: Mapping[str, str]


class FakeHub:
    """Serves `repos`: the content of every path of every repository, at one revision.

    `faults(path, nth)` says what goes wrong with the nth (from 0) request for a file or, under the path "", for a
    listing; `edit` changes what a listing says.
    """

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repos = {repo: dict(files) for repo, files in repos.items()}
        self.revision = REVISION
        self.revisions = {REVISION}
        self._requests: dict[int, Request] = {}  # by arrival
        self._arrived = 0
        self.listings = 0
        self.faults: Callable[[str, int], Fault | None] = lambda _path, _nth: None
        self.edit: Callable[[dict[str, Any]], None] = lambda _sibling: None
        self.seconds_a_piece = 0.0
        self.most_at_once = 0
        self._at_once = 0
        self._asked: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> list[Request]:
        """All requests for files so far as they arrived, once those under way are over."""
        deadline = time.monotonic() + 5
        while self._at_once and time.monotonic() < deadline:
            time.sleep(0.005)
        return [request for _, request in sorted(self._requests.items())]

    @property
    def sent(self) -> int:
        """Bytes of files sent so far."""
        return sum(request.sent for request in self.requests)

    def starts(self, path: str) -> list[int]:
        """Where the requests for a file started."""
        return [request.start for request in self.requests if request.path == path]

    def info(self, repo: str) -> dict[str, Any]:
        """What the hub tells of a repository."""
        siblings = []
        for path, content in self.repos[repo].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
            if not path.endswith((".json", ".txt")):  # the hub keeps only large and binary files as LFS objects
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            self.edit(sibling)
            siblings.append(sibling)
        return {"_id": "1", "id": repo, "modelId": repo, "sha": self.revision, "siblings": siblings}

    def _fault(self, path: str) -> Fault:
        with self._lock:
            nth = self._asked.get(path, 0)
            self._asked[path] = nth + 1
        return self.faults(path, nth) or Fault()

    def _handler(hub: "FakeHub") -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                address = unquote(urlsplit(self.path).path)
                if match := _API.fullmatch(address):
                    hub._list(self, match["repo"], match["revision"])
                elif match := _FILE.fullmatch(address):
                    hub._send(self, match["repo"], match["revision"], match["path"])
                else:
                    hub._refuse(self, 404)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str] | None = None) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()

    def _list(self, handler: BaseHTTPRequestHandler, repo: str, revision: str | None) -> None:
        self.listings += 1
        fault = self._fault("")
        if fault.status:
            self._refuse(handler, fault.status, fault.headers)
        elif repo not in self.repos:
            self._refuse(handler, 404, {"X-Error-Code": "RepoNotFound"})
        elif revision and revision not in self.revisions:
            self._refuse(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            body = json.dumps({**self.info(repo), "sha": revision or self.revision}).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

    def _send(self, handler: BaseHTTPRequestHandler, repo: str, revision: str, path: str) -> None:
        fault = self._fault(path)
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked and not fault.ignore_range else 0
        with self._lock:
            self._at_once += 1
            number = self._arrived = self._arrived + 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        sent = 0
        try:
            if fault.status:
                self._refuse(handler, fault.status, fault.headers)
            elif path not in self.repos.get(repo, {}):
                self._refuse(handler, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                for piece in self._pieces(handler, self.repos[repo][path], start, fault):
                    handler.wfile.write(piece)
                    sent += len(piece)
                    time.sleep(self.seconds_a_piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self._lock:
                self._requests[number] = Request(
                    path, int(asked[1]) if asked else 0, sent, revision, dict(handler.headers)
                )
                self._at_once -= 1

    def _pieces(self, handler: BaseHTTPRequestHandler, content: bytes, start: int, fault: Fault) -> Iterator[bytes]:
        """Sends the head of the answer; yields its body, as far as it goes."""
        total = len(content)
        if fault.swap:
            content = bytes(byte ^ 1 for byte in content)
        body = content[start : total + min(fault.surplus, 0)] + b"x" * max(fault.surplus, 0)
        headers = {"Content-Length": str(total - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        headers |= fault.headers
        if fault.chunked:
            del headers["Content-Length"]
            headers["Connection"] = "close"
        handler.send_response(206 if start else 200)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        end = len(body) if fault.drop_after is None else min(fault.drop_after, len(body))
        for sent in range(0, end, _PIECE):
            yield body[sent : min(sent + _PIECE, end)]
        if end < len(body) or fault.chunked:
            handler.close_connection = True
