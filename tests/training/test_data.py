"""Films through the pipeline: short real mp4 files of every kind that is to be dropped, and one that is kept."""

import base64
import io
import json
import threading
import wave
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch

pytest.importorskip("scenedetect")
pytest.importorskip("cv2")

from ovi_studio.chat import Endpoint
from ovi_studio.errors import MediaError, RewriteError
from ovi_studio.training.captions import QUESTION, ChatCaptioner
from ovi_studio.training.data import Limits, Steps, VaeEncoder, Verdict, prepare
from ovi_studio.training.filters import (
    OnsetSync,
    Sync,
    decibels,
    inside_margins,
    motion_score,
    resized,
)
from ovi_studio.training.flow import FlowStage
from ovi_studio.training.footage import Footage, Span, find_scenes, read_window, windows
from ovi_studio.training.latents import LatentSet
from ovi_studio.training.loop import Share
from ovi_studio.variants import Size, get_variant
from ovi_studio.weights.nano import fresh_nano
from tests.training import tiny

NANO = get_variant("nano")
SIDE = 128
RATE = 44_100
BEATS = (0.3, 0.75, 1.1, 1.7)  # seconds
EVERYTHING = Limits(min_pixels=1, min_motion=-1, min_decibels=-1000, max_offset=99, min_confidence=-99)


def picture(times: np.ndarray, beats: tuple[float, ...] = BEATS, ground: int = 150) -> np.ndarray:
    """A square on a textured ground that jumps up at every beat and sinks again."""
    rng = np.random.default_rng(ground)
    room = (ground + rng.normal(0, 12, (SIDE, SIDE, 3))).clip(40, 250).astype(np.uint8)
    frames = np.repeat(room[None], len(times), axis=0)
    for frame, time in zip(frames, times, strict=True):
        since = min((time - beat for beat in beats if time >= beat), default=9.0)
        y = int(90 - 60 * max(0.0, 1 - since / 0.25))
        frame[y : y + 30, 45:80] = (240, 60, 40)
    return frames


def sound(seconds: float, beats: tuple[float, ...] = BEATS, delay: float = 0.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    waves = [np.exp(-(t - b - delay) / 0.08) * (t >= b + delay) * np.sin(2 * np.pi * 440 * t) for b in beats]
    return (0.4 * np.sum(waves, axis=0)).astype(np.float32)


def write_film(path: Path, frames: np.ndarray, waveform: np.ndarray | None, fps: int = 30) -> Path:
    """As anybody's film is: other rates than a model's, stereo."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=fps, options={"crf": "12"})
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        audio = None if waveform is None else file.add_stream("aac", rate=RATE, layout="stereo")
        for index, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            shown.pts, shown.time_base = index, Fraction(1, fps)
            file.mux(video.encode(shown))
        file.mux(video.encode(None))
        for start in range(0, 0 if waveform is None else len(waveform), 1024):
            chunk = np.repeat(waveform[start : start + 1024][None], 2, axis=0)
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), "fltp", "stereo")
            heard.rate, heard.pts, heard.time_base = RATE, start, Fraction(1, RATE)
            file.mux(audio.encode(heard))
        if audio is not None:
            file.mux(audio.encode(None))
    return path


def film(path: Path, seconds: float = 2.2, delay: float = 0.0, **changes: object) -> Path:
    frames = picture(np.arange(round(seconds * 30)) / 30)
    return write_film(path, changes.get("frames", frames), changes.get("waveform", sound(seconds, delay=delay)))


# --- Reading -------------------------------------------------------------------------------------------------


def test_scenes_are_found_at_their_cuts_and_hold_whole_clips(tmp_path):
    times = np.arange(70) / 30
    frames = np.concatenate([picture(times), picture(times, ground=60), picture(times[:30], ground=230)])
    path = write_film(tmp_path / "cuts.mp4", frames, sound(170 / 30))
    scenes = find_scenes(path)
    assert [round(scene.start * 30) for scene in scenes] == [0, 70, 140]
    assert round(scenes[-1].end * 30) == 170
    assert [len(windows(scene, NANO)) for scene in scenes] == [1, 1, 0]
    (first,), (second,) = (windows(scene, NANO) for scene in scenes[:2])
    assert first.start == 0
    assert second.start == pytest.approx(70 / 30)
    assert windows(Span(0, 6.5), NANO)[-1].end == pytest.approx(3 * NANO.duration)


def test_a_window_has_the_variants_frames_and_samples_at_their_times(tmp_path):
    seconds = 4.0
    numbers = np.arange(round(seconds * 30))
    frames = np.repeat(np.repeat((60 + numbers)[:, None, None, None], 64, 1), 64, 2).repeat(3, 3).astype(np.uint8)
    path = write_film(tmp_path / "ramp.mp4", frames, sound(seconds, beats=(1.5,)))
    footage = read_window(path, Span(1.0, 1.0 + NANO.duration), NANO)
    assert footage.frames.shape == (49, 64, 64, 3)
    assert footage.waveform.shape == (NANO.num_samples,)
    shown = footage.frames[:, 32, 32].mean(1) - 60  # the number of the film's frame, but for the codec
    expected = (1.0 + np.arange(49) / 24) * 30
    assert np.abs(shown - expected).max() <= 2
    onset = np.flatnonzero(np.abs(footage.waveform) > 0.1)[0] / NANO.sample_rate
    assert onset == pytest.approx(0.5, abs=0.01)


def test_a_window_without_sound_is_silent_and_one_beyond_the_end_is_an_error(tmp_path):
    path = film(tmp_path / "mute.mp4", waveform=None)
    assert not read_window(path, Span(0.0, 2.0), NANO).waveform.any()
    with pytest.raises(MediaError, match="it ends"):
        read_window(path, Span(1.0, 3.0), NANO)
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(MediaError, match="cannot be used"):
        read_window(tmp_path / "text.mp4", Span(0.0, 2.0), NANO)


# --- Filters -------------------------------------------------------------------------------------------------


def footage_of(frames: np.ndarray, waveform: np.ndarray) -> Footage:
    resampled = np.interp(np.arange(NANO.num_samples) / 16_000, np.arange(len(waveform)) / RATE, waveform)
    return Footage(frames, resampled.astype(np.float32), 24, 16_000)


@pytest.mark.parametrize("delay", [-8, -3, 0, 2, 6])
def test_the_offset_of_a_sound_is_found(delay):
    frames = picture(np.arange(49) / 24)
    found = OnsetSync()(footage_of(frames, sound(2.1, delay=delay / 24)))
    assert abs(found.offset - delay) <= 1
    assert found.confidence > 1.5


def test_a_sound_that_has_nothing_to_do_with_the_picture_is_not_trusted():
    frames = picture(np.arange(49) / 24)
    hum = 0.2 * np.sin(2 * np.pi * 200 * np.arange(round(2.1 * RATE)) / RATE)
    assert OnsetSync()(footage_of(frames, hum)).confidence < 1.5


def test_motion_is_more_where_more_moves():
    still = np.repeat(picture(np.zeros(1)), 49, axis=0)
    grain = (still + np.random.default_rng(0).normal(0, 2, still.shape)).clip(0, 255).astype(np.uint8)
    moving = picture(np.arange(49) / 24)
    panned = np.stack([np.roll(still[0], 2 * index, axis=1) for index in range(49)])
    assert motion_score(still) < 0.05
    assert motion_score(grain) < 0.5 < motion_score(moving) < motion_score(panned)
    assert motion_score(panned) == pytest.approx(1000 * 2 / SIDE, rel=0.3)


def test_margins_loudness_and_size():
    frames = np.zeros((9, 60, 80, 3), np.uint8)
    assert inside_margins(frames)[1] == 0
    frames[4, 10:50, 6:70] = 200
    assert inside_margins(frames) == (10, 50, 6, 70)
    assert decibels(np.full(100, 0.1, np.float32)) == pytest.approx(-20)
    assert decibels(np.zeros(100, np.float32)) == -120
    wide = np.zeros((2, 50, 200, 3), np.uint8)
    wide[:, :, 75:125] = 255
    square = resized(wide, 96, 96)
    assert square.shape == (2, 96, 96, 3)
    assert square.mean() > 250


# --- The pipeline --------------------------------------------------------------------------------------------


def encode(footage: Footage) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands in for the VAEs: mean brightness and loudness."""
    video = torch.full((4, 3, 4, 4), float(footage.frames.mean())).half()
    return video, torch.full((16, 3), float(np.abs(footage.waveform).mean())).half()


def run(films: list[Path], out: Path, limits: Limits | None = None, **steps: object) -> list[dict]:
    told: list[Verdict] = []
    given = {"caption": lambda _: "A red square jumps. Audio: beats.", "encode": encode} | steps
    prepare(films, out, NANO, Size(96, 96), Steps(**given), limits or Limits(), told.append)
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_every_film_meets_its_fate_and_the_manifest_says_why(tmp_path):
    letterbox = np.zeros((66, 200, 160, 3), np.uint8)
    letterbox[:, 36:164, 16:144] = picture(np.arange(66) / 30)
    small = picture(np.arange(66) / 30)[:, ::2, ::2]
    films = {
        "good": film(tmp_path / "good.mp4"),
        "margins": film(tmp_path / "margins.mp4", frames=letterbox),
        "still": film(tmp_path / "still.mp4", frames=np.repeat(picture(np.zeros(1)), 66, axis=0)),
        "silent": film(tmp_path / "silent.mp4", waveform=np.zeros(round(2.2 * RATE), np.float32)),
        "late": film(tmp_path / "late.mp4", delay=8 / 24),
        "small": film(tmp_path / "small.mp4", frames=small),
        "black": film(tmp_path / "black.mp4", frames=np.zeros((66, 128, 128, 3), np.uint8)),
        "short": film(tmp_path / "short.mp4", seconds=1.0),
        "text": tmp_path / "text.mp4",
    }
    films["text"].write_text("no film")
    rows = run(list(films.values()), tmp_path / "out")
    whole = {Path(row["film"]).stem: row for row in rows if row["why"][:7] != "shorter"}
    assert [name for name, row in whole.items() if row["kept"]] == ["good", "margins"]
    assert whole["margins"]["measured"]["crop"] == pytest.approx([36, 164, 16, 144], abs=1)
    for name, why in {
        "still": "a still", "silent": "quieter than -60 dB", "late": "out of sync by more than 3",
        "small": "smaller than 9216 pixels", "black": "black", "text": "cannot be",
    }.items():  # fmt: skip
        assert why in whole[name]["why"]
    assert abs(whole["late"]["measured"]["offset"] - 8) <= 1
    assert {row["why"] for row in rows if Path(row["film"]).stem == "short"} == {"shorter than a clip of 2.05 seconds"}
    assert whole["good"]["caption"] == "A red square jumps. Audio: beats."
    shards = sorted(path for split in ("train", "test") for path in (tmp_path / "out" / split).glob("*"))
    assert len(shards) == 2


def test_it_goes_on_where_it_was_and_reads_no_film_twice(tmp_path):
    films = [film(tmp_path / "one.mp4"), film(tmp_path / "two.mp4")]

    def until_the_second(footage: Footage) -> str:
        if seen:
            raise RewriteError("The server is gone.", "Start it.")
        seen.append(footage)
        return "A square."

    seen: list[Footage] = []
    with pytest.raises(RewriteError):
        run(films, tmp_path / "out", caption=until_the_second)
    read: list[Path] = []

    def scenes(path: Path) -> list[Span]:
        read.append(path)
        return find_scenes(path)

    rows = run(films, tmp_path / "out", scenes=scenes)
    assert read == films[1:]
    assert [row["kept"] for row in rows if not row["why"].startswith("shorter")] == [True, True]


def test_a_sync_filter_and_a_captioner_of_ones_own(tmp_path):
    path = film(tmp_path / "late.mp4", delay=8 / 24)
    (row, *_) = run([path], tmp_path / "a", sync=lambda _: Sync(-3, 1.6))
    assert row["kept"]
    (row, *_) = run([path], tmp_path / "b", sync=lambda _: Sync(0, 1.5))
    assert row["why"] == "no more than 1.5 sure that sound and picture go together"
    (row, *_) = run([path], tmp_path / "c", EVERYTHING, caption=lambda _: "")
    assert row["why"] == "no caption"


def test_the_stages_read_what_was_prepared(tmp_path):
    rows = run([film(tmp_path / f"{index}.mp4", seconds=4.3) for index in range(2)], tmp_path / "out", EVERYTHING)
    folders = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    sets = [LatentSet.load(folder) for folder in folders]
    assert sum(len(latents) for latents in sets) == sum(row["kept"] for row in rows) == 4
    stage = FlowStage(tiny.transformer(), tiny.texts(), sets[0], sets[0], "both", steps=2, batch_size=2)
    assert torch.isfinite(stage(**stage.batch(0, Share()))["loss"])


@pytest.mark.slow
def test_latents_are_those_of_the_vaes(tmp_path):
    encode = VaeEncoder(fresh_nano())
    (row, *_) = run([film(tmp_path / "good.mp4")], tmp_path / "out", EVERYTHING, encode=encode)
    assert row["kept"]
    (shard,) = (tmp_path / "out").glob("t*/*.safetensors")
    latents = LatentSet.load(shard.parent)
    assert latents.video.shape == (1, 16, 13, 6, 6)
    assert latents.audio.shape == (1, 64, 8)
    assert torch.isfinite(latents.video).all()


# --- Captions ------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """A multimodal chat server on this machine: its address, and what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            words = "A red square\n jumps. It says <S>hop<E>. Audio: a beep."
            body = json.dumps({"choices": [{"message": {"content": words}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", asked
    http.shutdown()
    http.server_close()


def test_a_model_sees_seven_frames_and_hears_the_sound(server):
    address, asked = server
    footage = footage_of(picture(np.arange(49) / 24), sound(2.1))
    caption = ChatCaptioner(Endpoint(address, "seer"), "audcap")(footage)
    assert caption == "A red square jumps. It says <S>hop<E>. <AUDCAP>a beep.<ENDAUDCAP>"
    (message,) = asked[0]["messages"]
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["text", *["image_url"] * 7, "input_audio"]
    assert message["content"][0]["text"] == QUESTION
    urls = [part["image_url"]["url"] for part in message["content"][1:8]]
    images = [PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    assert {image.size for image in images} == {(SIDE, SIDE)}
    assert np.abs(np.asarray(images[-1]).astype(int) - footage.frames[-1]).mean() < 10
    with wave.open(io.BytesIO(base64.b64decode(message["content"][8]["input_audio"]["data"]))) as heard:
        assert (heard.getframerate(), heard.getnframes()) == (16_000, NANO.num_samples)


def test_an_answer_without_end_is_no_caption(server, monkeypatch):
    address, _ = server
    monkeypatch.setattr("ovi_studio.training.captions.MAX_CAPTION", 5)
    footage = footage_of(picture(np.arange(49) / 24), sound(2.1))
    assert ChatCaptioner(Endpoint(address, "seer"), "audio_prefix")(footage) == ""
    with pytest.raises(RewriteError):
        ChatCaptioner(replace(Endpoint(address, "seer"), base_url="http://127.0.0.1:9/v1"), "audcap")(footage)
