"""What happens to a person's jobs, told to their page as it changes.

    News(desk, visit, forecast).changed() → {what has changed since it was last asked}

Only parts that changed are told: a queue of hundreds is sent once, not with every step of the run.
"""

import json
from typing import Any

from ovi_studio.errors import InvalidInputError, OviStudioError
from ovi_studio.prompt import Kind, parse
from ovi_studio.request import GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.forecast import Forecast
from ovi_studio.studio.job import Job
from ovi_studio.studio.visits import Visit
from ovi_studio.variants import get_variant

_TITLE = 80  # characters; guessed: a line
_OWNER_DIGITS = 4  # of a visitor's mark; guessed: enough to tell a few apart

Told = dict[str, Any]


def title_of(job: Job) -> str:
    """What a person calls the job: its name, or the beginning of its prompt."""
    prompt = str(json.loads(job.request_json).get("prompt", ""))
    return short_title(job.name, prompt)


def short_title(name: str, prompt: str) -> str:
    """A name, or the beginning of a prompt, in a line."""
    words = " ".join((name or _said(prompt)).split())
    return words if len(words) <= _TITLE else f"{words[: _TITLE - 1]}…"


def model_of(job: Job) -> str:
    """The title of its model; of one that is known no longer, its name."""
    variant = str(json.loads(job.request_json).get("variant", ""))
    try:
        return get_variant(variant).title
    except InvalidInputError:
        return variant


def has_picture(job: Job) -> bool:
    """Whether its clip has one."""
    return bool(json.loads(job.request_json).get("modality") != "audio")


def mark_of(owner: str) -> str:
    """What tells the page's owner whose a job is; "" where it is their own."""
    return f"Visitor {owner.rpartition(':')[2][:_OWNER_DIGITS]}" if owner else ""


def _said(prompt: str) -> str:
    """A prompt as a person reads it: speech in quotation marks, the caption only where it stands alone."""
    segments = parse(prompt).segments
    seen = "".join(
        f"“{each.words}”" if each.kind is Kind.SPEECH else each.words
        for each in segments
        if each.kind is not Kind.CAPTION
    )
    return seen if seen.strip() else "".join(each.words for each in segments)


class News:
    """What one page was told.

    Args:
        desk: where the jobs are.
        visit: whose page it is.
        forecast: looks ahead over the queue.
    """

    def __init__(self, desk: Desk, visit: Visit, forecast: Forecast) -> None:
        self._desk = desk
        self._visit = visit
        self._forecast = forecast
        self._told: dict[str, str] = {}
        self._shown: dict[str, tuple[Job, Told]] = {}  # rows of jobs that have not changed

    def changed(self) -> Told:
        """What has changed since the last time; all of it at first."""
        now = self._state()
        written = {name: json.dumps(value) for name, value in now.items()}
        changed = {name: now[name] for name, text in written.items() if self._told.get(name) != text}
        self._told = written
        return changed

    def _state(self) -> Told:
        """Everything: `left_now` is how long the run under way still takes, whosever it is."""
        owner = self._visit.person.is_owner
        nothing: Told = {"running": [], "waiting": [], "ended": [], "failed": [], "left_now": None, "owner": owner}
        try:
            everything = self._desk.snapshot()
            now = self._visit.snapshot()
            places = self._forecast.places(everything)
        except OviStudioError as error:
            return nothing | {"trouble": self._visit.words_of(error)}
        left = [self._left(job) for job in everything.running]
        waiting = [self._row(job) | vars(places[job.id]) for job in now.waiting if job.id in places]
        shown = {job.id for job in (*now.running, *now.waiting, *now.failed)}
        self._shown = {job_id: row for job_id, row in self._shown.items() if job_id in shown}
        return {
            "running": [self._row(job) | self._run(job) for job in now.running],
            "waiting": waiting,
            "ended": [
                {
                    "id": job.id,
                    "title": title_of(job),
                    "status": job.status,
                    "finished": job.finished,
                    "has_picture": has_picture(job),
                }
                for job in now.ended
            ],
            "failed": [self._row(job) | {"finished": job.finished} for job in now.failed],
            "left_now": round(max((each for each in left if each is not None), default=0.0)),
            "others": len(everything.running) + len(everything.waiting) - len(now.running) - len(now.waiting),
            "owner": owner,
            "trouble": now.trouble,
        }

    def _row(self, job: Job) -> Told:
        """What a row of the queue shows of a job, whatever its place."""
        known = self._shown.get(job.id)
        if known is not None and (known[0].request_json, known[0].name, known[0].status, known[0].reason) == (
            job.request_json, job.name, job.status, job.reason,
        ):  # fmt: skip
            return known[1]
        row: Told = {
            "id": job.id,
            "title": title_of(job),
            "status": job.status,
            "model": model_of(job),
            "facts": _facts(job),
            "frame": _frame(job),
            "shape": _shape(job),
            "silent": _is_silent(job),
            "visitor": mark_of(job.owner) if self._visit.person.is_owner else "",
            "reason": self._visit.words_of(job.reason),
        }
        self._shown[job.id] = job, row
        return row

    def _left(self, job: Job) -> float | None:
        return self._desk.live.seconds_left if self._desk.live.job == job.id else job.seconds_left

    def _run(self, job: Job) -> Told:
        """A job in the making: as this program sees it, or as another one told the library."""
        live = self._desk.live
        news: Told = {"progress": round(job.progress, 3), "wish": job.wish}
        if live.job != job.id:
            told = {"stage": job.stage, "seconds_left": job.seconds_left, "step": 0, "steps": 0, "note": ""}
            return news | told | {"pictures": 0, "sounds": 0}
        seen = ("stage", "step", "steps", "seconds_left", "note", "pictures", "sounds")
        return news | {name: getattr(live, name) for name in seen}


def _request(job: Job) -> GenerationRequest | None:
    """What was asked for; None where another version wrote it."""
    try:
        return job.request
    except InvalidInputError:
        return None


def _facts(job: Job) -> str:
    """What tells a waiting job from others, in a few words."""
    request = _request(job)
    if request is None:
        return ""
    steps = request.num_inference_steps or get_variant(request.variant).defaults.num_inference_steps
    kind = {"audio": "sound only", "video": "picture only"}.get(request.modality, "")
    size = request.clip_size()
    picture = "" if request.modality == "audio" else f"{size.width} × {size.height}"
    return " · ".join(filter(None, (picture, kind, f"{steps} steps", f"seed {job.seed}")))


def _shape(job: Job) -> tuple[int, int] | None:
    """Width and height of its picture; None where there is none, or a first frame decides."""
    request = _request(job)
    if request is None or request.modality == "audio":
        return None
    if request.first_frame is not None and request.size is None and request.aspect is None:
        return None
    height, width = request.clip_size()
    return width, height


def _is_silent(job: Job) -> bool:
    request = _request(job)
    return request is not None and request.modality == "video"


def _frame(job: Job) -> str:
    """Which picture it starts from: the beginning of its hash, "drawn", or ""."""
    request = _request(job)
    match request.first_frame if request else None:
        case ImageFrame(path=str(), sha256=digest):
            return (digest or "picture")[:12]
        case GeneratedFrame():
            return "drawn"
    return ""
