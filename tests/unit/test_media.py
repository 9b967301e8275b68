"""Clips: exact length, position and colour, streamed, whole or not there at all."""

import contextlib
import io
import json
import os
import subprocess
import sys
import wave
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ovi_studio import files, media
from ovi_studio.errors import CancelledError, MediaError
from ovi_studio.media import Clip, read_clip, write_clip

FPS, RATE = 24, 16_000
HEIGHT, WIDTH = 64, 96
AAC_FRAME = 1024
AS_TAGGED = {"src_colorspace": 1, "dst_colorspace": 1, "src_color_range": 1, "dst_color_range": 2}
GEOMETRIES = [(121, 80_384), (241, 160_768), (49, 32_768)]


def moving(num_frames: int, height: int = HEIGHT, width: int = WIDTH) -> Iterator[np.ndarray]:
    """A grey ramp that gets brighter: each frame's mean tells its number."""
    ramp = np.arange(width)[None, :, None] * 40 // width
    for index in range(num_frames):
        yield np.broadcast_to(ramp + index * 200 // num_frames, (height, width, 3)).astype(np.uint8)


def tone(num_samples: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 / RATE * np.arange(num_samples))).astype(np.float32)


def clicks(num_samples: int, *positions: int) -> np.ndarray:
    waveform = np.zeros(num_samples, np.float32)
    waveform[list(positions)] = 0.9
    return waveform


def write(path: Path, frames: Any = None, waveform: Any = None, **metadata: Any) -> Clip:
    return write_clip(path, frames=frames, waveform=waveform, fps=FPS, sample_rate=RATE, metadata=metadata)


def plain_decode(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames and samples as PyAV gives them to anyone, with none of our code."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24", **AS_TAGGED) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, samples


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def error_of(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual.astype(float) - expected.astype(float)).mean())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return write(path, moving(121), tone(80_384), request={"prompt": "a ramp"})


# Geometry and timing


@pytest.mark.parametrize(("num_frames", "num_samples"), GEOMETRIES)
def test_exact_counts_rates_and_durations(tmp_path: Path, num_frames: int, num_samples: int) -> None:
    clip = write(tmp_path / "clip.mp4", moving(num_frames), tone(num_samples))
    assert (clip.width, clip.height, clip.num_frames, clip.fps) == (WIDTH, HEIGHT, num_frames, FPS)
    assert (clip.num_samples, clip.sample_rate) == (num_samples, RATE)
    assert clip.duration == max(num_frames / FPS, num_samples / RATE)
    with av.open(str(clip.path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.average_rate == FPS
        assert video.duration is not None
        assert video.time_base is not None
        assert video.duration * video.time_base == Fraction(num_frames, FPS)
        assert audio.duration is not None
        assert audio.time_base is not None
        assert abs(audio.duration * audio.time_base * RATE - num_samples) < AAC_FRAME
        times = [frame.pts * frame.time_base for frame in container.decode(video)]
    assert times == [Fraction(index, FPS) for index in range(num_frames)]
    frames, samples = plain_decode(clip.path)
    assert len(frames) == num_frames
    assert num_samples <= len(samples) < num_samples + AAC_FRAME


def test_every_frame_is_there_in_order(clip: Clip) -> None:
    decoded = list(media.decode_frames(clip.path))
    assert len(decoded) == 121
    for actual, expected in zip(decoded, moving(121), strict=True):
        assert error_of(actual, expected) < 0.8  # neighbours differ by 1.65


def test_sound_starts_at_its_sample_and_stays_there(tmp_path: Path) -> None:
    positions = (0, 8_000, 40_321, 80_300)
    clip = write(tmp_path / "clip.mp4", moving(121), clicks(80_384, *positions))
    _, samples = plain_decode(clip.path)
    for position in positions:
        window = samples[max(position - 900, 0) : position + 900]
        assert np.argmax(window) + max(position - 900, 0) == position


def test_a_flash_and_its_click_come_together(tmp_path: Path) -> None:
    flash = 60
    frames = (np.full((HEIGHT, WIDTH, 3), 255 * (index == flash), np.uint8) for index in range(121))
    clip = write(tmp_path / "clip.mp4", frames, clicks(80_384, flash * RATE // FPS))
    with av.open(str(clip.path)) as container:
        seen = {frame.time: frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)}
    with av.open(str(clip.path)) as container:
        heard = {
            frame.time + int(np.argmax(frame.to_ndarray()[0])) / RATE: frame.to_ndarray().max()
            for frame in container.decode(audio=0)
        }
    offset = max(seen, key=seen.__getitem__) - max(heard, key=heard.__getitem__)
    assert abs(offset) < 1 / RATE


def test_sound_survives_encoding(clip: Clip) -> None:
    samples, rate = media.decode_audio(clip.path)
    assert samples.dtype == np.float32
    assert (samples.shape, rate) == ((80_384,), RATE)
    noise = (samples - tone(80_384))[AAC_FRAME:-AAC_FRAME]
    assert np.sqrt(np.mean(noise**2)) < 0.01


@pytest.mark.parametrize("name", ["sound.mp4", "sound.m4a"])
def test_sound_alone(tmp_path: Path, name: str) -> None:
    clip = write(tmp_path / name, waveform=tone(80_384), request={"modality": "audio"})
    assert (clip.has_picture, clip.has_sound, clip.num_samples) == (False, True, 80_384)
    assert clip.duration == 5.024
    assert media.read_metadata(clip.path)["request"] == {"modality": "audio"}
    assert len(media.decode_audio(clip.path)[0]) == 80_384
    for reader in (
        media.first_frame,
        media.last_frame,
        media.thumbnail,
        lambda p: next(media.decode_frames(p)),
    ):
        with pytest.raises(MediaError, match="no picture"):
            reader(clip.path)


def test_picture_alone(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", moving(49))
    assert (clip.has_picture, clip.has_sound, clip.num_frames) == (True, False, 49)
    for reader in (media.decode_audio, lambda path: media.waveform_peaks(path, 4)):
        with pytest.raises(MediaError, match="no sound"):
            reader(clip.path)


def test_the_index_comes_before_the_data(clip: Clip) -> None:
    data = clip.path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_sound_lies_beside_its_picture(clip: Clip) -> None:
    with av.open(str(clip.path)) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    # two halves of the file hold about half of the sound each
    assert 0.3 < kinds[: len(kinds) // 2].count("audio") / kinds.count("audio") < 0.7


# Colour

SOLIDS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 30, 90)]


def test_colours_are_bt709_and_do_not_shift(tmp_path: Path) -> None:
    solids = [np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in SOLIDS]
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    gradient = np.stack([columns * 2, rows * 4, (rows + columns) * 255 // 158], axis=-1).astype(np.uint8)
    written = [*solids, gradient]
    clip = write(tmp_path / "clip.mp4", written, tone(4_000))
    for plain, ours, expected in zip(plain_decode(clip.path)[0], media.decode_frames(clip.path), written, strict=True):
        assert error_of(plain, expected) <= 2
        assert error_of(ours, expected) <= 1.5
        assert abs((ours.astype(float) - expected).mean()) <= 0.5


def test_the_file_says_bt709_limited_range_and_means_it(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", [np.full((HEIGHT, WIDTH, 3), SOLIDS[0], np.uint8)])
    with av.open(str(clip.path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert context.color_range == 1
        assert context.pix_fmt == "yuv420p"
        planes = next(container.decode(video=0)).to_ndarray()
    luma = 16 + 219 * 0.2126  # ITU-R BT.709: red's weight
    red_difference = 128 + 224 * 0.5
    assert abs(planes[:HEIGHT].mean() - luma) < 1
    assert abs(planes[HEIGHT + HEIGHT // 4 :].mean() - red_difference) < 1
    assert b"colrnclx" in clip.path.read_bytes()  # the container says so too, for players that ask only it


# Frames, thumbnails, waveforms


def test_any_frame_by_number_is_exact(clip: Clip) -> None:
    decoded = list(media.decode_frames(clip.path))
    for index in range(121):
        np.testing.assert_array_equal(media.read_frame(clip.path, index), decoded[index])


def test_first_and_last_frame(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", moving(241), tone(160_768))
    first, *_, last = media.decode_frames(clip.path)
    np.testing.assert_array_equal(media.first_frame(clip.path), first)
    np.testing.assert_array_equal(media.last_frame(clip.path), last)
    *_, expected = moving(241)
    assert error_of(last, expected) < 0.8


def test_a_clip_of_one_frame(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", moving(1))
    assert (clip.num_frames, clip.fps) == (1, FPS)
    np.testing.assert_array_equal(media.first_frame(clip.path), media.last_frame(clip.path))


@pytest.mark.parametrize("index", [-1, 121, 10**9])
def test_a_frame_that_is_not_there(clip: Clip, index: int) -> None:
    with pytest.raises(MediaError, match="has no frame"):
        media.read_frame(clip.path, index)


def test_thumbnail_is_a_small_jpeg_of_the_middle(clip: Clip) -> None:
    with Image.open(io.BytesIO(media.thumbnail(clip.path, max_side=48))) as image:
        assert (image.format, image.size) == ("JPEG", (48, 32))
        middle = list(moving(121))[60]
        assert abs(np.asarray(image).mean() - middle.mean()) < 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(buckets=st.integers(1, 3_000))
def test_peaks_are_the_lowest_and_highest_samples(clip: Clip, buckets: int) -> None:
    samples, _ = media.decode_audio(clip.path)
    peaks = media.waveform_peaks(clip.path, buckets)
    assert peaks.shape == (buckets, 2)
    edges = [-(-bucket * len(samples) // buckets) for bucket in range(buckets + 1)]
    for (low, high), start, end in zip(peaks, edges, edges[1:], strict=False):
        assert (low, high) == (samples[start:end].min(), samples[start:end].max())


def test_more_spans_than_samples(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", waveform=tone(100))
    peaks = media.waveform_peaks(clip.path, 1_000)
    assert peaks.shape == (1_000, 2)
    assert np.isfinite(peaks).all()


def test_int16_is_truncated_as_recorded() -> None:
    waveform = np.array([0, 0.5, -0.5, 1, -1, 2, 0.99999], np.float32)
    assert media.to_int16(waveform).tolist() == [0, 16383, -16383, 32767, -32767, 32767, 32766]


def test_wav() -> None:
    with wave.open(io.BytesIO(media.wav_bytes(tone(32_768), RATE))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    np.testing.assert_array_equal(samples, media.to_int16(tone(32_768)))


# Metadata in the file

PROMPTS = [
    "plain",
    "line one\nline two\r\n\ttabbed",
    'quotes " and \\ and <S>words<E> and ; = #',
    "emoji 🎬👩‍👩‍👧 and 汉字 and عربى and \u0000 and \ud800",
    "long 🎬" * 10_000,
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: ascii(prompt[:12]))
def test_a_prompt_survives_the_round_trip(tmp_path: Path, prompt: str) -> None:
    clip = write(tmp_path / "clip.mp4", moving(2), tone(2_000), request={"prompt": prompt, "seed": 2**63})
    assert media.read_metadata(clip.path)["request"] == {"prompt": prompt, "seed": 2**63}
    assert clip.metadata == media.read_metadata(clip.path)
    assert len(list(media.decode_frames(clip.path))) == 2


def foreign(path: Path, comment: str | None) -> Path:
    """An mp4 made by another program."""
    with av.open(str(path), "w", format="mp4") as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = WIDTH, HEIGHT
        for image in moving(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("comment", [None, "My holiday", '{"title": 1}'])
def test_clips_of_others(tmp_path: Path, comment: str | None) -> None:
    path = foreign(tmp_path / "holiday.mp4", comment)
    assert read_clip(path).metadata is None
    with pytest.raises(MediaError, match="not made by Ovi Studio"):
        media.read_metadata(path)


def test_codecs_that_our_clips_do_not_have(tmp_path: Path) -> None:
    path = tmp_path / "other.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height = WIDTH, HEIGHT
        for image in moving(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    for reader in (read_clip, media.first_frame, media.thumbnail):
        with pytest.raises(MediaError, match="h264"):
            reader(path)


def test_damaged_metadata(tmp_path: Path) -> None:
    path = foreign(tmp_path / "clip.mp4", '{"ovi_studio": "1", "a": ' + "[" * 100_000)
    assert read_clip(path).num_frames == 3
    with pytest.raises(MediaError, match="damaged"):
        media.read_metadata(path)


READERS = [read_clip, media.read_metadata, media.last_frame, media.decode_audio, media.thumbnail]


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_clip(tmp_path: Path, reader: Any) -> None:
    secret = tmp_path / "secret.mp4"
    playlist = tmp_path / "list.mp4"
    secret.write_text("not yours")
    playlist.write_text(f"ffconcat version 1.0\nfile {secret}\n")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path in (secret, playlist, empty, tmp_path, tmp_path / "missing.mp4", tmp_path / ("x" * 300)):
        with pytest.raises(MediaError) as raised:
            reader(path)
        assert raised.value.remedy


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_clip_cut_short_is_not_taken_for_whole(tmp_path: Path, clip: Clip, part: float) -> None:
    data = clip.path.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * part)])
    readers = [lambda p: list(media.decode_frames(p)), media.last_frame, media.decode_audio]
    for reader in readers:
        with pytest.raises(MediaError):
            reader(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=10))
def test_damage_gives_a_clip_or_a_media_error(tmp_path: Path, clip: Clip, damage: list[tuple[float, int]]) -> None:
    data = bytearray(clip.path.read_bytes())
    for where, value in damage:
        data[int(where * min(len(data) - 1, 4_000))] = value  # in the index, where it hurts
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    for reader in (*READERS, lambda p: media.waveform_peaks(p, 16), lambda p: list(media.decode_frames(p))):
        with contextlib.suppress(MediaError):
            reader(path)


# Writing, or not


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, moving(49), tone(32_768), request={"seed": 1}) for name in ("1.mp4", "2.mp4"))
    assert one.path.read_bytes() == two.path.read_bytes()


def test_only_a_frame_or_two_are_held(tmp_path: Path) -> None:
    alive: list[weakref.ref] = []
    most = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal most
        for frame in moving(121):
            alive.append(weakref.ref(frame))
            yield frame
            most = max(most, sum(reference() is not None for reference in alive))

    write(tmp_path / "clip.mp4", counted(), tone(80_384))
    assert len(alive) == 121
    assert most <= 2


@pytest.mark.parametrize("fault", [CancelledError(), OSError(28, "of the model"), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("at", [0, 1, 70])
def test_a_fault_of_the_frames_leaves_nothing_and_passes_unchanged(
    tmp_path: Path, fault: BaseException, at: int
) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from moving(at)
        raise fault

    path = tmp_path / "clip.mp4"
    with pytest.raises(type(fault)) as raised:
        write(path, failing(), tone(80_384))
    assert raised.value is fault
    assert names_in(tmp_path) == []
    path.write_bytes(b"an earlier take")
    with pytest.raises(type(fault)):
        write(path, failing(), tone(80_384))
    assert path.read_bytes() == b"an earlier take"
    assert names_in(tmp_path) == ["clip.mp4"]


def test_the_name_appears_at_the_end_with_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an earlier take")

    def watched() -> Iterator[np.ndarray]:
        for frame in moving(49):
            assert path.read_bytes() == b"an earlier take"
            yield frame

    write(path, watched())
    assert read_clip(path).num_frames == 49
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "real.mp4"
    link = tmp_path / "link.mp4"
    link.symlink_to(target)
    write(link, moving(2))
    assert link.is_symlink()
    assert read_clip(target).num_frames == 2


@pytest.mark.parametrize(("height", "width"), [(64, 97), (65, 96), (63, 95)])
def test_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    with pytest.raises(MediaError, match=f"{width}x{height}.*even"):
        write(tmp_path / "clip.mp4", moving(2, height, width))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("frames", [[], None])
def test_nothing_to_write(tmp_path: Path, frames: list | None) -> None:
    with pytest.raises(MediaError, match="nothing to write"):
        write(tmp_path / "clip.mp4", frames)
    assert names_in(tmp_path) == []


def test_sound_that_is_not_numbers(tmp_path: Path) -> None:
    for waveform in (
        np.full(2_000, np.nan, np.float32),
        np.array([np.inf], np.float32),
        np.zeros(0, np.float32),
    ):
        with pytest.raises(MediaError, match="not numbers"):
            write(tmp_path / "clip.mp4", moving(2), waveform)
        with pytest.raises(MediaError, match="not numbers"):
            media.wav_bytes(waveform, RATE)
    assert names_in(tmp_path) == []


def test_loud_sound_is_clipped(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", waveform=tone(32_768) * 4)
    assert np.abs(media.decode_audio(clip.path)[0]).max() < 1.3  # the codec's ringing


@pytest.mark.parametrize(
    "frame",
    [np.zeros((64, 64, 3), np.uint8), np.zeros((64, 96), np.uint8), np.zeros((64, 96, 3), np.float32)],
)
def test_frames_of_another_kind_are_a_mistake_of_the_caller(tmp_path: Path, frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="does not take"):
        write(tmp_path / "clip.mp4", [*moving(1), frame])
    assert names_in(tmp_path) == []


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cases = {
        tmp_path / "missing" / "clip.mp4": "no folder",
        tmp_path / "file" / "clip.mp4": "no folder",
        tmp_path: "is a folder",
        tmp_path / ("x" * 300): "cannot be written",
        Path("/dev/null"): "not an ordinary file",
        Path("/proc/clip.mp4"): "cannot be written",
        Path("a\0b.mp4"): "not a file name",
    }
    for path, problem in cases.items():
        for attempt in (
            files.check_writable,
            lambda path: write(path, moving(2)),
        ):
            with pytest.raises(MediaError, match=problem) as raised:
                attempt(path)
            assert ".part" not in str(raised.value)
    assert names_in(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(MediaError, match="cannot be written"):
            files.check_writable(tmp_path / "clip.mp4")
    finally:
        tmp_path.chmod(0o700)


def test_a_writable_path_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    files.check_writable(path)
    assert names_in(tmp_path) == []
    path.write_bytes(b"an earlier take")
    files.check_writable(str(path))
    assert path.read_bytes() == b"an earlier take"


FULL_DISK = """
import json, os, resource, sys
from pathlib import Path
from ovi_studio.errors import MediaError
from tests.unit.test_media import moving, tone, write

folder, limits = Path(sys.argv[1]), json.loads(sys.argv[2])
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(folder / "clip.mp4", moving(121), tone(80_384), request={"prompt": "a" * 5000})
        outcome = "written"
    except MediaError as error:
        outcome = str(error)
    print(json.dumps([outcome, sorted(os.listdir(folder)), (folder / "clip.mp4").stat().st_size]))
"""


def test_a_disk_that_fills_up_at_any_point(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    whole = write(tmp_path / "clip.mp4", moving(121), tone(80_384), request={"prompt": "a" * 5000})
    size = whole.path.stat().st_size
    whole.path.write_bytes(b"an earlier take")
    limits = [0, 1, 100, 4_096, size // 3, size // 2, size - 5_000, size - 100, size - 1, size]
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), json.dumps(limits)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    *failures, success = map(json.loads, run.stdout.splitlines())
    assert len(failures) == len(limits) - 1
    for outcome, names, length in failures:
        assert "full" in outcome
        assert (names, length) == (["clip.mp4"], len(b"an earlier take"))
    assert success == ["written", ["clip.mp4"], size]
