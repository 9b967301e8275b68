"""A job as the page shows it: plain data for the widgets, without any path of this machine."""

from collections.abc import Iterable
from typing import Any

from ovi_studio.media import Clip, read_clip, waveform_peaks
from ovi_studio.runtime.execution_plan import gigabytes
from ovi_studio.studio.job import Job
from ovi_studio.ui.news import title_of
from ovi_studio.variants import get_variant

_PEAKS = 600  # bars that a waveform can show; guessed: a wide screen's

Shown = dict[str, Any]


def shown_clip(job: Job) -> Shown:
    """A finished job for the result: title, prompt, facts, waveform, downloads.

    Raises:
        MediaError: its file is gone or damaged.
        InvalidRequestError: another version made it.
    """
    clip, request = read_clip(job.output), job.request
    return {
        "id": job.id,
        "title": title_of(job),
        "prompt": request.prompt,
        "favourite": job.favourite,
        "has_picture": clip.has_picture,
        "has_sound": clip.has_sound,
        "peaks": _peaks(job) if clip.has_sound else [],
        "facts": _facts(job, clip),
        "downloads": _downloads(job, picture=clip.has_picture, sound=clip.has_sound),
    }


def shown_pair(jobs: Iterable[Job]) -> list[Shown]:
    """Two jobs for the comparison, each with what tells it from the other."""
    pair = list(jobs)
    facts = [dict(_facts(job, read_clip(job.output))) for job in pair]
    return [
        {
            "id": job.id,
            "title": title_of(job),
            "has_picture": job.request.modality != "audio",
            "differs": _differences(own, other),
        }
        for job, own, other in zip(pair, facts, reversed(facts), strict=True)
    ]


def shown_strip(jobs: Iterable[Job]) -> dict[str, Any]:
    """Jobs for the strip of recent clips."""
    return {
        "clips": [
            {
                "id": job.id,
                "title": title_of(job),
                "status": job.status,
                "label": f"{'★ ' if job.favourite else ''}{job.name or f'seed {job.seed}'}",
                "has_picture": job.status == "done" and job.request.modality != "audio",
            }
            for job in jobs
        ]
    }


def _facts(job: Job, clip: Clip) -> list[tuple[str, str]]:
    """What the clip was made from, in a few words each."""
    variant = get_variant(job.request.variant)
    value = {name: getattr(job.request, name) for name in vars(variant.defaults)}
    value = {name: usual if value[name] is None else value[name] for name, usual in vars(variant.defaults).items()}
    facts = [
        ("Seed", str(job.seed)),
        ("Model", variant.title),
        ("Size", f"{clip.width} × {clip.height}" if clip.has_picture else ""),
        ("Steps", f"{value['num_inference_steps']} {value['solver']}"),
        ("Shift", f"{value['shift']:g}"),
        ("Guidance", f"{value['video_guidance_scale']:g} / {value['audio_guidance_scale']:g}"),
        ("Made in", "" if job.seconds is None else f"{job.seconds:.1f} s"),
        ("Card memory", "" if not job.measured.gpu_bytes else gigabytes(job.measured.gpu_bytes)),
    ]
    return [(name, text) for name, text in facts if text]


def _differences(own: dict[str, str], other: dict[str, str]) -> str:
    return ", ".join(f"{name.lower()} {text}" for name, text in own.items() if other.get(name) != text)


def _peaks(job: Job) -> list[float]:
    """The loudest of each stretch, 0 to 1."""
    return [round(float(peak), 3) for peak in abs(waveform_peaks(job.output, _PEAKS)).max(axis=1)]


def _downloads(job: Job, *, picture: bool, sound: bool) -> list[tuple[str, str, str]]:
    """What each is called, where it is, and the name of its file."""
    clip, stem = f"studio/clip/{job.id}", job.output.stem
    links = [("Clip (mp4)", f"{clip}.mp4", f"{stem}.mp4")]
    links += [("Sound (wav)", f"{clip}.wav", f"{stem}.wav")] if sound else []
    if picture:
        links += [
            (f"{which} frame", f"{clip}/{which.lower()}.png", f"{stem} {which.lower()} frame.png")
            for which in ("First", "Last")
        ]
    return links
