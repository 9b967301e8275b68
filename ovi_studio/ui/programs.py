"""The page for programs: a handful of endpoints with names and types, for `gradio_client` and, as tools, for MCP.

    generate → jobs → status … → studio/clip/<id>.mp4       plan · library · cancel

They are the same doors as the page's: a visitor's program sees and changes what is that visitor's.
"""

import json
from typing import Any

import gradio as gr

from ovi_studio.errors import InvalidInputError
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.job import STATUSES, Job
from ovi_studio.studio.library import Filter
from ovi_studio.ui.create import PlanMaker, check_prompt
from ovi_studio.ui.door import Visits
from ovi_studio.ui.handling import told, without_folders
from ovi_studio.ui.news import title_of
from ovi_studio.variants import parse_size

Answer = dict[str, Any]


class Programs:
    """Make it inside of `gr.Blocks`.

    Args:
        visits: who asks.
        plan: how a request would be made.
    """

    def __init__(self, visits: Visits, plan: PlanMaker) -> None:
        self._visits = visits
        self._plan = plan
        for name, function in (
            ("generate", self.generate),
            ("status", self.status),
            ("cancel", self.cancel),
            ("plan", self.plan),
            ("library", self.library),
        ):
            gr.api(told(function, markup=False), api_name=name, queue=False)

    def generate(
        self,
        request: gr.Request,
        prompt: str,
        variant: str = "nano",
        modality: str = "both",
        size: str = "",
        seed: int = -1,
        steps: int = 0,
        takes: int = 1,
        quality: str = "auto",
    ) -> list[Answer]:
        """Put clips into the queue, a job for each take.

        Args:
            request: who asks.
            prompt: what is seen and heard; speech is written <S>words<E>.
            variant: the model.
            modality: both, video or audio.
            size: height x width, such as 704x1280; empty: the model's own.
            seed: the same seed makes the same clip; -1 draws one.
            steps: of sampling; 0: the model's own number.
            takes: how many clips.
            quality: auto, exact, fast or smallest.

        Returns:
            The jobs, as `status` tells them.
        """
        wanted = _request(prompt, variant, modality, size, seed, steps, takes, quality)
        check_prompt(wanted)
        return [_told(job) for job in self._visits.of(request).ask(wanted)]

    def status(self, request: gr.Request, job: str) -> Answer:
        """How far a job is.

        Args:
            request: who asks.
            job: its id.

        Returns:
            id, status (queued, running, paused, done, failed, cancelled), progress from 0 to 1, seconds_left, problem,
            remedy, seed, title, variant, and of a finished job clip: the clip's address, relative to the page's.
        """
        return _told(self._visits.of(request).job(job))

    def cancel(self, request: gr.Request, job: str) -> Answer:
        """Give up a job that waits or runs.

        Args:
            request: who asks.
            job: its id.

        Returns:
            The job, as `status` tells it.
        """
        visit = self._visits.of(request)
        visit.cancel(job)
        return _told(visit.job(job))

    def plan(
        self,
        request: gr.Request,
        prompt: str = "any",
        variant: str = "nano",
        modality: str = "both",
        size: str = "",
        steps: int = 0,
        quality: str = "auto",
    ) -> Answer:
        """How a clip would be made now: seconds, memory and why.

        Args:
            request: who asks.
            prompt: and the rest as for `generate`.
            variant: the model.
            modality: both, video or audio.
            size: height x width.
            steps: of sampling.
            quality: auto, exact, fast or smallest.

        Returns:
            The plan: components, stages, peak_gpu_bytes, peak_host_bytes, seconds, reasons, rejected.
        """
        self._visits.of(request)
        return self._plan(_request(prompt, variant, modality, size, 0, steps, 1, quality)).to_json()

    def library(self, request: gr.Request, text: str = "", status: str = "done", page: int = 0) -> list[Answer]:
        """Jobs, the newest first, 48 to a page.

        Args:
            request: who asks.
            text: each of its words stands in the prompt, the name or the tags.
            status: of the jobs; empty: all.
            page: from 0.

        Returns:
            The jobs, as `status` tells them.
        """
        if status and status not in STATUSES:
            raise InvalidInputError(f"There is no status {status!r}.", f"Give one of {', '.join(STATUSES)}, or none.")
        statuses = tuple(each for each in STATUSES if each == status)
        found = self._visits.of(request).page(Filter(statuses, text=text), max(0, page))
        return [_told(job) for job in found.jobs]


def _request(
    prompt: str, variant: str, modality: str, size: str, seed: int, steps: int, takes: int, quality: str
) -> GenerationRequest:
    return GenerationRequest.create(
        prompt=prompt,
        variant=variant,
        modality=modality,
        size=tuple(parse_size(size)) if size else None,
        seed=None if seed < 0 else seed,
        num_inference_steps=steps or None,
        takes=takes,
        quality=quality,
    )


def _told(job: Job) -> Answer:
    told_of: Answer = {
        "id": job.id,
        "status": job.status,
        "progress": job.progress,
        "seconds_left": job.seconds_left,
        "problem": without_folders(job.problem),
        "remedy": job.remedy,
        "seed": job.seed,
        "title": title_of(job),
        "variant": str(json.loads(job.request_json).get("variant", "")),  # it may be known no longer
    }
    return told_of | ({"clip": f"studio/clip/{job.id}.mp4"} if job.status == "done" else {})
