"""What the page fetches besides gradio's own: news of the runs, clips, pictures.

    studio/live                    server-sent events: what runs, waits and has ended
    studio/live/<job>/<n>.jpg .wav the picture and the sound of the run under way, as they are now
    studio/clip/<job>.mp4 .wav     a finished clip, and its sound alone
    studio/clip/<job>/first.png last.png
    studio/thumb/<job>.jpg

Clips are named by their job, never by a path. All of it is read only.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import PIL.Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ovi_studio.errors import InvalidInputError, OviStudioError
from ovi_studio.media import decode_audio, first_frame, last_frame, wav_bytes
from ovi_studio.prompt import Kind, parse
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.job import Job

_NEWS_SECONDS = 0.25  # guessed: how late a step is seen
_SIGN_OF_LIFE = 15.0  # seconds; guessed: proxies give up silent connections after about a minute
_TITLE = 80  # characters; guessed: a line


def studio_routes(desk: Desk) -> list[Route]:
    """The routes, for the server's `app_kwargs`."""

    def get(path: str, answer: Callable[[Desk, Request], Response]) -> Route:
        def endpoint(request: Request) -> Response:
            try:
                return answer(desk, request)
            except OviStudioError as error:
                status = 404 if isinstance(error, InvalidInputError) else 503
                return PlainTextResponse(str(error), status)

        return Route(path, endpoint)

    async def live(_request: Request) -> Response:
        return StreamingResponse(_news(desk), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return [
        Route("/studio/live", live),
        get("/studio/live/{job}/{number:int}.{kind}", _live_file),
        get("/studio/clip/{job}.mp4", _clip),
        get("/studio/clip/{job}.wav", _sound),
        get("/studio/clip/{job}/{which}.png", _frame),
        get("/studio/thumb/{job}.jpg", _thumbnail),
    ]


def title_of(job: Job) -> str:
    """What a person calls the job: its name, or the beginning of its prompt."""
    prompt = str(json.loads(job.request_json).get("prompt", ""))
    words = " ".join((job.name or _said(prompt)).split())
    return words if len(words) <= _TITLE else f"{words[: _TITLE - 1]}…"


def _said(prompt: str) -> str:
    """A prompt as a person reads it: speech in quotation marks, the caption only where it stands alone."""
    segments = parse(prompt).segments
    seen = "".join(
        f"“{each.words}”" if each.kind is Kind.SPEECH else each.words
        for each in segments
        if each.kind is not Kind.CAPTION
    )
    return seen if seen.strip() else "".join(each.words for each in segments)


# --- News -----------------------------------------------------------------------------------------------------


async def _news(desk: Desk) -> AsyncIterator[str]:
    """Events until whoever listens goes away: one whenever something has changed."""
    told, silent = "", 0.0
    while not desk.closed:
        news = await run_in_threadpool(_state, desk)
        data = json.dumps(news)
        if data != told:
            told, silent = data, 0.0
            yield f"data: {data}\n\n"
        elif silent >= _SIGN_OF_LIFE:
            silent = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(_NEWS_SECONDS)
        silent += _NEWS_SECONDS


def _state(desk: Desk) -> dict[str, Any]:
    try:
        now = desk.snapshot()
    except OviStudioError as error:
        return {"running": [], "waiting": [], "ended": [], "trouble": str(error)}
    return {
        "running": [_run(desk, job) for job in now.running],
        "waiting": [{"id": job.id, "title": title_of(job), "status": job.status} for job in now.waiting],
        "ended": [{"id": job.id, "status": job.status} for job in now.ended],
        "trouble": now.trouble,
    }


def _run(desk: Desk, job: Job) -> dict[str, Any]:
    """A job in the making: as this program sees it, or as another one told the library."""
    live = desk.live
    news: dict[str, Any] = {"id": job.id, "title": title_of(job), "progress": round(job.progress, 3)}
    if live.job != job.id:
        told = {"stage": job.stage, "seconds_left": job.seconds_left, "step": 0, "steps": 0, "note": ""}
        return news | told | {"pictures": 0, "sounds": 0}
    seen = ("stage", "step", "steps", "seconds_left", "note", "pictures", "sounds")
    return news | {name: getattr(live, name) for name in seen}


def _live_file(desk: Desk, request: Request) -> Response:
    live = desk.live
    if live.job != request.path_params["job"]:
        raise InvalidInputError("This run is over.", "Look at its clip.")
    match request.path_params["kind"], live.picture, live.sound:
        case "jpg", bytes(picture), _:
            return _data(picture, "image/jpeg")
        case "wav", _, bytes(sound):
            return _data(sound, "audio/wav")
    raise InvalidInputError("There is nothing yet.", "Ask again in a moment.")


# --- Clips ----------------------------------------------------------------------------------------------------


def _made(desk: Desk, request: Request) -> Job:
    """The finished job that the address names."""
    job = desk.library.get(request.path_params["job"])
    if job.status != "done" or not job.output.is_file():
        raise InvalidInputError("There is no clip of this job.", "It was not finished, or its file was moved.")
    return job


def _clip(desk: Desk, request: Request) -> Response:
    return FileResponse(_made(desk, request).output, media_type="video/mp4", headers=_HEADERS)


def _sound(desk: Desk, request: Request) -> Response:
    return _data(wav_bytes(*decode_audio(_made(desk, request).output)), "audio/wav")


def _frame(desk: Desk, request: Request) -> Response:
    read = {"first": first_frame, "last": last_frame}.get(request.path_params["which"])
    if read is None:
        raise InvalidInputError("There is no such frame.", "Ask for first.png or last.png.")
    data = io.BytesIO()
    PIL.Image.fromarray(read(_made(desk, request).output)).save(data, "PNG")
    return _data(data.getvalue(), "image/png")


def _thumbnail(desk: Desk, request: Request) -> Response:
    picture = desk.library.thumbnail(request.path_params["job"])
    if picture is None:
        raise InvalidInputError("This clip has no picture.", "Listen to it.")
    return _data(picture, "image/jpeg")


_HEADERS = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}


def _data(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers=_HEADERS)
