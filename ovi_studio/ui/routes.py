"""What the page fetches besides gradio's own: news of the runs, clips, pictures.

    studio/live                    server-sent events: what runs, waits and has ended; each tells what has changed
    studio/live/<job>/<n>.jpg .wav the picture and the sound of the run under way, as they are now
    studio/clip/<job>.mp4 .wav     a finished clip, and its sound alone
    studio/clip/<job>/first.png last.png
    studio/thumb/<job>.jpg         a finished clip, small
    studio/frame/<job>.jpg         the picture that a job starts from, small
    studio/export/<token>.zip      many clips

Clips are named by their job, never by a path. All of it is read only, and of what is somebody else's nothing is there.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable

import PIL.Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ovi_studio.errors import InvalidInputError, OviStudioError
from ovi_studio.images import read_image
from ovi_studio.media import decode_audio, first_frame, last_frame, wav_bytes
from ovi_studio.request import ImageFrame
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.export import Exports
from ovi_studio.studio.forecast import Forecast
from ovi_studio.studio.job import Job
from ovi_studio.studio.visits import Visit
from ovi_studio.ui.door import Visits
from ovi_studio.ui.news import News

_NEWS_SECONDS = 0.25  # guessed: how late a step is seen
_SIGN_OF_LIFE = 15.0  # seconds; guessed: proxies give up silent connections after about a minute
_FRAME_SIDE = 240  # pixels of a small first frame; guessed: a row's picture on a fine screen

Answer = Callable[[Visit, Request], Response]


def studio_routes(desk: Desk, visits: Visits, exports: Exports, forecast: Forecast) -> list[Route]:
    """The routes, for the server's `app_kwargs`.

    Args:
        desk: where the jobs are.
        visits: whose request it is.
        exports: zips that wait to be fetched.
        forecast: looks ahead over the queue.
    """

    def get(path: str, answer: Answer) -> Route:
        def endpoint(request: Request) -> Response:
            try:
                visit = visits.of(request)
            except InvalidInputError as error:
                return PlainTextResponse(str(error), 401)
            try:
                return answer(visit, request)
            except OviStudioError as error:
                status = 404 if isinstance(error, InvalidInputError) else 503
                return PlainTextResponse(visit.words_of(error), status)

        return Route(path, endpoint)

    async def live(request: Request) -> Response:
        try:
            news = News(desk, visits.of(request), forecast)
        except InvalidInputError as error:
            return PlainTextResponse(str(error), 401)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(_told(desk, news), media_type="text/event-stream", headers=headers)

    def live_file(visit: Visit, request: Request) -> Response:
        return _live_file(desk, visit, request)

    def export(visit: Visit, request: Request) -> Response:
        path = exports.find(request.path_params["token"], visit.person.id)
        return FileResponse(path, media_type="application/zip", filename="ovi-clips.zip", headers=_PASSING)

    return [
        Route("/studio/live", live),
        get("/studio/live/{job}/{number:int}.{kind}", live_file),
        get("/studio/clip/{job}.mp4", _clip),
        get("/studio/clip/{job}.wav", _sound),
        get("/studio/clip/{job}/{which}.png", _frame),
        get("/studio/thumb/{job}.jpg", _thumbnail),
        get("/studio/frame/{job}.jpg", _first_frame),
        get("/studio/export/{token}.zip", export),
    ]


# --- News -----------------------------------------------------------------------------------------------------


async def _told(desk: Desk, news: News) -> AsyncIterator[str]:
    """Events until whoever listens goes away: one whenever something has changed."""
    silent = 0.0
    while not desk.closed:
        changed = await run_in_threadpool(news.changed)
        if changed:
            silent = 0.0
            yield f"data: {json.dumps(changed)}\n\n"
        elif silent >= _SIGN_OF_LIFE:
            silent = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(_NEWS_SECONDS)
        silent += _NEWS_SECONDS


def _live_file(desk: Desk, visit: Visit, request: Request) -> Response:
    """What there is of the run; nothing, which is no error, where it is over since it was told of."""
    live = desk.live
    if live.job == visit.job(request.path_params["job"]).id:
        match request.path_params["kind"], live.picture, live.sound:
            case "jpg", bytes(picture), _:
                return _data(picture, "image/jpeg")
            case "wav", _, bytes(sound):
                return _data(sound, "audio/wav")
    return Response(status_code=204)


# --- Clips ----------------------------------------------------------------------------------------------------


def _made(visit: Visit, request: Request) -> Job:
    """The finished job that the address names."""
    job = visit.job(request.path_params["job"])
    if job.status != "done" or not job.output.is_file():
        raise InvalidInputError("There is no clip of this job.", "It was not finished, or its file was moved.")
    return job


def _clip(visit: Visit, request: Request) -> Response:
    return FileResponse(_made(visit, request).output, media_type="video/mp4", headers=_HEADERS)


def _sound(visit: Visit, request: Request) -> Response:
    return _data(wav_bytes(*decode_audio(_made(visit, request).output)), "audio/wav")


def _frame(visit: Visit, request: Request) -> Response:
    read = {"first": first_frame, "last": last_frame}.get(request.path_params["which"])
    if read is None:
        raise InvalidInputError("There is no such frame.", "Ask for first.png or last.png.")
    data = io.BytesIO()
    PIL.Image.fromarray(read(_made(visit, request).output)).save(data, "PNG")
    return _data(data.getvalue(), "image/png")


def _thumbnail(visit: Visit, request: Request) -> Response:
    picture = visit.thumbnail(request.path_params["job"])
    if picture is None:
        raise InvalidInputError("This clip has no picture.", "Listen to it.")
    return _data(picture, "image/jpeg")


def _first_frame(visit: Visit, request: Request) -> Response:
    frame = visit.job(request.path_params["job"]).request.first_frame
    if not isinstance(frame, ImageFrame) or frame.path is None:
        raise InvalidInputError("This job starts from no picture.", "There is nothing to see.")
    picture = read_image(frame.path)
    picture.thumbnail((_FRAME_SIDE, _FRAME_SIDE))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return _data(data.getvalue(), "image/jpeg")


_HEADERS = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
_PASSING = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _data(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers=_HEADERS)
