"""Somebody who speaks to the page without a browser, and looks at every word that comes back."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

Dependency = dict[str, Any]
_JSON = {"Content-Type": "application/json"}


@dataclass
class Answered:
    """What became of an event: its outputs, or the sentence that refuses it ("" where gradio says none)."""

    outputs: list[Any] | None
    refusal: str
    text: str


@dataclass
class Raw:
    """A session of somebody who is logged in.

    Args:
        address: of the page.
        name: of the account.
        password: of the account.
        session: gradio's name for this page of theirs.
        never: what must stand in nothing that comes back.
    """

    address: str
    name: str
    password: str
    session: str = "raw"
    never: tuple[str, ...] = ()
    config: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx2.Client(base_url=self.address, timeout=60)
        self.http.get("/")
        login = self.http.post("/login", data={"username": self.name, "password": self.password})
        assert login.status_code == 200
        self.config = self.get("/config").json()

    # --- Asking -----------------------------------------------------------------------------------------------

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self._seen(self.http.get(path, **options))

    def post(self, path: str, **options: Any) -> httpx2.Response:
        return self._seen(self.http.post(path, **options))

    def upload(self, name: str, data: bytes) -> httpx2.Response:
        return self.post("/gradio_api/upload", files={"files": (name, data)})

    def first_news(self) -> dict[str, Any]:
        """The first of the events of `studio/live`."""
        with self.http.stream("GET", "/studio/live") as stream:
            line = next(line for line in stream.iter_lines() if line.startswith("data:"))
        self._check(line, "studio/live")
        return dict(json.loads(line[5:]))

    def server(self, function: str, asked: Any) -> Any:
        """Call a widget's function as its script does."""
        widget = next(each for each in self.components() if function in (each["props"].get("server_fns") or ()))
        body = {"data": asked, "component_id": widget["id"], "session_hash": self.session, "fn_name": function}
        answer = self.post("/gradio_api/component_server", content=json.dumps(body), headers=_JSON)
        assert answer.status_code == 200, (function, answer.text)
        return answer.json()

    def server_functions(self) -> list[str]:
        return [name for each in self.components() for name in each["props"].get("server_fns") or ()]

    def event(self, dependency: int | str, data: Sequence[Any]) -> Answered:
        """One event, by its number or by what its handler is called."""
        number = self.named(dependency)["id"] if isinstance(dependency, str) else dependency
        (answered,) = self.events([(number, data)])
        return answered

    def events(self, calls: Iterable[tuple[int, Sequence[Any]]]) -> list[Answered]:
        """Several at once, by their numbers."""
        joined = []
        for number, data in calls:
            body = {"data": list(data), "fn_index": number, "session_hash": self.session}
            answer = self.post("/gradio_api/queue/join", content=json.dumps(body), headers=_JSON)
            joined.append(answer.json()["event_id"])
        done: dict[str, Answered] = {}
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                self._check(line, "queue/data")
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    output = message["output"]
                    outputs = output["data"] if message["success"] else None
                    done[message["event_id"]] = Answered(outputs, output.get("error") or "", line)
                    if len(done) == len(joined):
                        break
        return [done[event] for event in joined]

    # --- What there is ----------------------------------------------------------------------------------------

    def components(self) -> list[dict[str, Any]]:
        return list(self.config["components"])

    def component(self, number: int) -> dict[str, Any]:
        return next(each for each in self.components() if each["id"] == number)

    def dependencies(self) -> list[Dependency]:
        """Every event with a handler on the server; one of those that share a handler."""
        found = [each for each in self.config["dependencies"] if each["backend_fn"]]
        return list({re.sub(r"^(_\w+?)_\d+$", r"\1", str(each["api_name"])): each for each in found[::-1]}.values())

    def named(self, handler: str) -> Dependency:
        return next(each for each in self.dependencies() if each["api_name"] == handler)

    def filled(self, dependency: Dependency, **changes: Any) -> list[Any]:
        """Data as the page would send it at first, with some inputs changed: by their label, or by their type."""
        inputs = [self.component(number) for number in dependency["inputs"]]
        values = []
        for each in inputs:
            value = each["props"].get("value")
            if isinstance(value, str) and value.startswith("A red face"):
                value = changes.get("prompt", value)
            values.append(changes.get(each["props"].get("label") or "", changes.get(each["type"], value)))
        return values

    def _seen(self, response: httpx2.Response) -> httpx2.Response:
        if "text" in response.headers.get("content-type", "") or "json" in response.headers.get("content-type", ""):
            self._check(response.text, str(response.url))
        return response

    def _check(self, text: str, where: str) -> None:
        for secret in self.never:
            assert secret not in text, (where, secret, text[:2000])
