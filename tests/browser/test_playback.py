"""Clips play in Chromium: the picture and the sound that it decodes are those that went in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from ovi_studio.engine.engine import OviEngine
from ovi_studio.events import CancelToken, Finished
from ovi_studio.media import write_clip
from ovi_studio.request import GenerationRequest

pytestmark = pytest.mark.browser

# Plays to the end, then tells what was decoded: the last colour drawn, and the sound as Web Audio decodes it.
PROBE = """
async (url) => {
    const video = document.createElement('video');
    video.src = url;
    document.body.append(video);
    const ended = new Promise((resolve, reject) => {
        video.onended = resolve;
        video.onerror = () => reject(new Error(video.error.message));
    });
    video.playbackRate = 4;
    await video.play();
    await ended;
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    let colour = null;
    if (canvas.width) {
        const context = canvas.getContext('2d');
        context.drawImage(video, 0, 0);
        colour = [...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data.slice(0, 3)];
    }
    let sound = null;
    try {
        const bytes = await (await fetch(url)).arrayBuffer();
        const audio = await new AudioContext({sampleRate: 16000}).decodeAudioData(bytes);
        const samples = audio.getChannelData(0);
        let energy = 0, crossings = 0;
        for (let i = 1; i < samples.length; i++) {
            energy += samples[i] ** 2;
            crossings += (samples[i - 1] < 0) !== (samples[i] < 0);
        }
        const rms = Math.sqrt(energy / samples.length);
        sound = {length: samples.length, rms, hertz: crossings / 2 / audio.duration};
    } catch (error) {
        sound = {error: error.message};
    }
    const quality = video.getVideoPlaybackQuality();
    return {
        size: [video.videoWidth, video.videoHeight], duration: video.duration, colour, sound,
        frames: quality.totalVideoFrames,
    };
}
"""


def play(browser: Browser, address: str) -> dict[str, Any]:
    page = browser.new_page()
    try:
        page.goto(address.rsplit("/", 1)[0] + "/")
        return page.evaluate(PROBE, address)
    finally:
        page.close()


def test_colour_and_tone_arrive(browser: Browser, served: str, tmp_path: Path) -> None:
    seconds = np.arange(32_768) / 16_000
    write_clip(
        tmp_path / "clip.mp4",
        frames=(np.full((96, 128, 3), (200, 80, 40), np.uint8) for _ in range(49)),
        waveform=(0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32),
        fps=24,
        sample_rate=16_000,
        metadata={"request": {}},
    )
    seen = play(browser, f"{served}/clip.mp4")
    assert seen["size"] == [128, 96]
    assert abs(seen["duration"] - 32_768 / 16_000) < 1024 / 16_000
    assert np.abs(np.array(seen["colour"]) - (200, 80, 40)).max() <= 4
    assert abs(seen["sound"]["rms"] - 0.5 / np.sqrt(2)) < 0.02
    assert abs(seen["sound"]["hertz"] - 440) < 5
    assert abs(seen["sound"]["length"] - 32_768) <= 1024


@pytest.mark.parametrize("modality", ["both", "video", "audio"])
def test_a_clip_of_the_engine_plays(browser: Browser, served: str, tmp_path: Path, modality: str) -> None:
    engine = OviEngine(tmp_path, tmp_path / "cache")
    request = GenerationRequest.create(prompt="A red face.", seed=1, num_inference_steps=1, modality=modality)
    *_, last = engine.generate(request, CancelToken())
    assert isinstance(last, Finished)
    seen = play(browser, f"{served}/{last.clip.path.name}")
    assert seen["size"] == ([0, 0] if modality == "audio" else [96, 96])
    if modality != "video":
        assert abs(seen["sound"]["length"] - 32_768) <= 1024
        assert seen["sound"]["rms"] > 0
    else:
        assert "error" in seen["sound"]


@pytest.mark.parametrize(("frames", "samples"), [(121, 80_384), (241, 160_768)], ids=["5 s", "10 s"])
def test_the_real_lengths_play_to_the_end(
    browser: Browser, served: str, tmp_path: Path, frames: int, samples: int
) -> None:
    """Each frame is a little brighter than the one before, so the colour at the end tells which was the last."""
    levels = np.linspace(16, 235, frames).astype(np.uint8)
    seconds = np.arange(samples) / 16_000
    write_clip(
        tmp_path / "clip.mp4",
        frames=(np.full((64, 96, 3), level, np.uint8) for level in levels),
        waveform=(0.5 * np.sin(2 * np.pi * 300 * seconds)).astype(np.float32),
        fps=24,
        sample_rate=16_000,
        metadata={"request": {}},
    )
    seen = play(browser, f"{served}/clip.mp4")
    assert abs(seen["duration"] - max(frames / 24, samples / 16_000)) < 1024 / 16_000
    assert np.abs(np.array(seen["colour"]) - 235).max() <= 4
    assert abs(seen["sound"]["length"] - samples) <= 1024
    assert abs(seen["sound"]["hertz"] - 300) < 5
