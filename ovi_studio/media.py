"""Clips: a stream of frames and a waveform into an mp4, and back; the request travels inside.

A `Clip` is a path and what the file's header says, never arrays. Writing streams: one frame is converted
and encoded at a time, the sound beside it, so that memory holds the encoder's look-ahead and no more. A
file appears under its name only when it is whole. What travels inside is read as untrusted (`metadata.py`).

Legend: frames are uint8 RGB arrays of shape (height, width, 3); waveforms are float32 mono arrays of
shape (samples,) in [-1, 1]. Still images are read in `images.py`.
"""

import contextlib
import io
import math
import os
import platform
import wave
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from ovi_studio.errors import MediaError
from ovi_studio.files import check_writable, replacing, writing_errors
from ovi_studio.metadata import dump_metadata, parse_metadata

Frame = NDArray[np.uint8]
Waveform = NDArray[np.float32]

_CRF = "17"  # guessed: the value x264's users call visually lossless
_ENCODER_THREADS = 8  # fixed, as x264's output depends on it
# x264's AVX-512 code gives other bytes from run to run (measured: noisy 96×96 frames, x264 of PyAV 18.1, of eight
# runs up to five alike); its SSE4.2 code, which every x86-64 processor of the last 15 years has, never did.
_X264_PARAMS = {"x264-params": "asm=SSE4.2"} if platform.machine() in ("x86_64", "AMD64") else {}
_AAC_FRAME = 1024  # samples
_AAC_BITS_PER_SAMPLE = 6  # the format's ceiling for one channel: 6144 bits a frame

_BT709 = 1  # ITU-T H.273: the same code point for matrix, primaries and transfer
_LIMITED_RANGE, _FULL_RANGE = 1, 2  # libavutil's AVCOL_RANGE_MPEG and AVCOL_RANGE_JPEG
# swscale: bicubic, accurate rounding, full chroma interpolation and input. Without the last three a
# decoded ramp comes out 1.2 levels too dark (measured, libswscale 9.5).
_SCALER_FLAGS = 0x4 | 0x40000 | 0x2000 | 0x4000


@dataclass(frozen=True)
class Clip:
    """A finished clip: its file and what its header says. What a clip lacks is zero."""

    path: Path
    width: int  # pixels
    height: int  # pixels
    num_frames: int
    fps: float  # frames a second
    num_samples: int
    sample_rate: int  # samples a second
    metadata: dict[str, Any] | None  # what `write_clip` embedded; None in a file that is not ours

    @property
    def has_picture(self) -> bool:
        """Whether there are frames."""
        return self.num_frames > 0

    @property
    def has_sound(self) -> bool:
        """Whether there are samples."""
        return self.num_samples > 0

    @property
    def duration(self) -> float:
        """Seconds until both picture and sound have ended."""
        picture = self.num_frames / self.fps if self.has_picture else 0.0
        sound = self.num_samples / self.sample_rate if self.has_sound else 0.0
        return max(picture, sound)


# Writing -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def clip_writer(
    path: str | Path,
    *,
    size: tuple[int, int] | None,
    waveform: Waveform | None,
    fps: int | Fraction,
    sample_rate: int,
    metadata: Mapping[str, Any],
) -> Iterator["ClipEncoder"]:
    """Encode sound, and frames as they are added, to an mp4 (h264 and AAC) that is whole when the block ends.

    Nothing is stretched or dropped: picture and sound keep their own lengths. The same input gives the
    same bytes. On any failure, also one raised in the block, nothing is left behind and a file that was
    there before is untouched.

    Args:
        path: the file to write; an existing one is replaced at the end.
        size: height and width of the frames, even; None for sound alone.
        waveform: values outside [-1, 1] are clipped; None for picture alone.
        fps: frames a second.
        sample_rate: samples a second.
        metadata: JSON data to embed beside our version, such as `{"request": {...}}`.

    Raises:
        MediaError: the path cannot be written, the disk is full, a size is odd, there is nothing to
            write, the sound holds NaN or infinity, or the metadata is too large.
    """
    comment = dump_metadata(metadata)
    samples = _checked_waveform(waveform) if waveform is not None else None
    if size is not None:
        _check_size(size)
    elif samples is None:
        raise _nothing_to_write()
    with replacing(Path(path)) as temporary, ClipEncoder(Path(path), temporary, comment) as encoder:
        if size is not None:
            encoder.add_video(size, fps)
        if samples is not None:
            encoder.add_audio(samples, sample_rate)
        yield encoder
        if size is not None and encoder.num_frames == 0:
            raise _nothing_to_write()


def write_clip(
    path: str | Path,
    *,
    frames: Iterable[Frame] | None,
    waveform: Waveform | None,
    fps: int | Fraction,
    sample_rate: int,
    metadata: Mapping[str, Any],
) -> Clip:
    """Encode all `frames`, as they come, and the sound; see `clip_writer`. The first frame sets the size.

    Raises:
        MediaError: as `clip_writer`.
    """
    path = Path(path)
    check_writable(path)  # before the first frame is made, which may take long
    remaining = iter(frames) if frames is not None else iter(())
    first = next(remaining, None)
    if first is None and frames is not None:
        raise _nothing_to_write()
    size = (first.shape[0], first.shape[1]) if first is not None else None
    with clip_writer(
        path, size=size, waveform=waveform, fps=fps, sample_rate=sample_rate, metadata=metadata
    ) as encoder:
        for frame in chain([first] if first is not None else [], remaining):
            encoder.add_frame(frame)
    return read_clip(path)


def wav_bytes(waveform: Waveform, sample_rate: int) -> bytes:
    """The sound alone as a wav file, uncompressed, 16 bits a sample.

    Raises:
        MediaError: it holds NaN or infinity.
    """
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(sample_rate)
        wav.writeframes(to_int16(_checked_waveform(waveform)).astype("<i2").tobytes())
    return file.getvalue()


def to_int16(waveform: Waveform) -> NDArray[np.int16]:
    """Samples as 16-bit integers, `waveform * 32767` truncated, as the reference implementation does."""
    return (np.clip(waveform, -1.0, 1.0) * np.float32(32767)).astype(np.int16)


class ClipEncoder:
    """One mp4 being written, see `clip_writer`. Errors of the file become MediaError."""

    def __init__(self, path: Path, file: Path, comment: str) -> None:
        self.num_frames = 0
        self._path = path  # the name to tell; the bytes go to `file`
        self._video: VideoStream | None = None
        self._audio: AudioStream | None = None
        self._samples = np.zeros(0, np.float32)
        self._position = 0  # of the next sample
        # faststart: the index goes before the data, so that a page can play while it loads
        options = {"movflags": "+faststart"}
        with _encoding(path):
            self._container = av.open(str(file), "w", format="mp4", container_options=options)
        self._container.metadata["comment"] = comment

    def add_video(self, size: tuple[int, int], fps: int | Fraction) -> None:
        """Declare the picture: `size` is height, width."""
        rate = Fraction(fps)
        stream = self._container.add_stream("libx264", rate=rate, options={"crf": _CRF, **_X264_PARAMS})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / rate
        context.gop_size = math.ceil(rate)  # a key frame a second: seeking in a page is quick
        context.thread_count = _ENCODER_THREADS
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        self._video = stream

    def add_audio(self, samples: Waveform, sample_rate: int) -> None:
        """Declare the sound and hand over all of it; it is encoded beside the frames."""
        stream = self._container.add_stream("aac", rate=sample_rate)
        stream.codec_context.layout = "mono"
        stream.codec_context.bit_rate = _AAC_BITS_PER_SAMPLE * sample_rate
        self._audio, self._samples = stream, samples

    def add_frame(self, image: Frame) -> None:
        """Encode the next frame, and the sound until its end."""
        stream = self._video
        if stream is None or image.shape != (stream.height, stream.width, 3) or image.dtype != np.uint8:
            raise ValueError(f"a frame that the clip does not take: {image.shape} {image.dtype}")
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
            format="yuv420p",
            src_colorspace=_BT709,
            dst_colorspace=_BT709,
            src_color_range=_FULL_RANGE,
            dst_color_range=_LIMITED_RANGE,
            interpolation=_SCALER_FLAGS,
        )
        frame.pts, frame.time_base = self.num_frames, stream.codec_context.time_base
        with _encoding(self._path):
            self._container.mux(stream.encode(frame))
        self.num_frames += 1
        if self._audio is not None:
            seconds = self.num_frames * stream.codec_context.time_base
            self._add_sound(self._audio, until=math.floor(seconds * self._audio.rate))

    def _add_sound(self, stream: AudioStream, until: int) -> None:
        """Encode whole AAC frames of sound until sample `until` is reached or the sound ends."""
        while self._position < min(until, len(self._samples)):
            chunk = self._samples[self._position : self._position + _AAC_FRAME]
            frame = av.AudioFrame.from_ndarray(chunk[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = stream.rate, self._position
            frame.time_base = Fraction(1, stream.rate)
            with _encoding(self._path):
                self._container.mux(stream.encode(frame))
            self._position += len(chunk)

    def __enter__(self) -> "ClipEncoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with contextlib.suppress(FFmpegError, OSError):  # the first error is the one to tell
                self._container.close()
            return
        try:
            if self._audio is not None:
                self._add_sound(self._audio, until=len(self._samples))
            with _encoding(self._path):
                self._container.mux(self._video.encode(None) if self._video is not None else [])
                self._container.mux(self._audio.encode(None) if self._audio is not None else [])
        finally:
            with _encoding(self._path):
                self._container.close()


@contextlib.contextmanager
def _encoding(path: Path) -> Iterator[None]:
    """Errors of the file system and of the encoders, in words."""
    with writing_errors(path):
        try:
            yield
        except OSError:
            raise
        except FFmpegError as error:
            raise MediaError(
                f"{path} cannot be encoded: {error.strerror}.", "Ask for a usual size and length."
            ) from error


def _check_size(size: tuple[int, int]) -> None:
    height, width = size
    if width % 2 or height % 2 or not width or not height:
        raise MediaError(
            f"A clip of {width}x{height} pixels cannot be encoded: h264 needs even sides.",
            "Ask for a width and a height that are multiples of 32.",
        )


def _nothing_to_write() -> MediaError:
    return MediaError("There is nothing to write: no frame came.", "Ask for a clip with frames.")


def _checked_waveform(waveform: Waveform) -> Waveform:
    if waveform.ndim != 1 or waveform.dtype != np.float32:
        raise ValueError(f"a waveform must be 1-D float32, not {waveform.ndim}-D {waveform.dtype}")
    if not waveform.size or not np.isfinite(waveform).all():
        raise MediaError(
            "The sound is empty or holds values that are not numbers.",
            "Try another seed, or a plan with higher precision.",
        )
    return np.clip(waveform, -1.0, 1.0)


# Reading -----------------------------------------------------------------------------------------------


def read_clip(path: str | Path) -> Clip:
    """What a clip's header says; frames and sound stay in the file.

    Raises:
        MediaError: no such file, or not an mp4.
    """
    path = Path(path)
    with _reading(path), _open(path) as container:
        video = _video_stream(path, container) if container.streams.video else None
        audio = _audio_stream(path, container) if container.streams.audio else None
        metadata = None
        with contextlib.suppress(MediaError):  # `read_metadata` tells why
            metadata = parse_metadata(path, container.metadata.get("comment", ""))
        return Clip(
            path=path,
            width=video.width if video else 0,
            height=video.height if video else 0,
            num_frames=video.frames if video else 0,
            fps=float(video.average_rate or 0) if video else 0.0,
            num_samples=_num_samples(audio) if audio else 0,
            sample_rate=audio.rate if audio else 0,
            metadata=metadata,
        )


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `write_clip` embedded in the file, checked for form and not for meaning.

    Raises:
        MediaError: no such file, not an mp4, not made by Ovi Studio, or its data is damaged.
    """
    path = Path(path)
    with _reading(path), _open(path) as container:
        return parse_metadata(path, container.metadata.get("comment", ""))


def decode_frames(path: str | Path) -> Iterator[Frame]:
    """Every frame in order, one at a time.

    Raises:
        MediaError: the file cannot be read, has no picture or is cut short.
    """
    path = Path(path)
    with _reading(path), _open(path) as container:
        stream = _video_stream(path, container)
        count = 0
        for frame in container.decode(stream):
            yield _to_rgb(frame)
            count += 1
        if count < stream.frames:
            raise _cut_short(path)


def read_frame(path: str | Path, index: int) -> Frame:
    """Frame `index` exactly, whether it is a key frame or not.

    Raises:
        MediaError: the file cannot be read, has no picture or no such frame.
    """
    path = Path(path)
    with _reading(path), _open(path) as container:
        stream = _video_stream(path, container)
        rate, time_base = stream.average_rate, stream.time_base
        if not rate or not time_base or not 0 <= index < stream.frames:
            raise MediaError(f"{path} has no frame {index}.", f"Ask for one of its {stream.frames} frames.")
        container.seek(int(index / rate / time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.pts is not None and round(frame.pts * time_base * rate) == index:
                return _to_rgb(frame)
        raise _cut_short(path)


def first_frame(path: str | Path) -> Frame:
    """The first frame. Raises as `read_frame`."""
    return read_frame(path, 0)


def last_frame(path: str | Path) -> Frame:
    """The very last frame, as a continuation needs it. Raises as `read_frame`."""
    return read_frame(path, max(read_clip(path).num_frames - 1, 0))


def thumbnail(path: str | Path, max_side: int = 320) -> bytes:
    """A JPEG of the middle frame, its longer side at most `max_side` pixels. Raises as `read_frame`."""
    image = Image.fromarray(read_frame(path, read_clip(path).num_frames // 2))
    image.thumbnail((max_side, max_side))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=85)
    return data.getvalue()


def decode_audio(path: str | Path) -> tuple[Waveform, int]:
    """The whole sound and its rate in samples a second.

    Raises:
        MediaError: the file cannot be read, has no sound or is cut short.
    """
    sample_rate = read_clip(path).sample_rate
    return np.concatenate([np.zeros(0, np.float32), *_decode_sound(Path(path))]), sample_rate


def waveform_peaks(path: str | Path, buckets: int) -> Waveform:
    """The lowest and highest sample in each of `buckets` equal spans, shape (buckets, 2).

    Reads the sound as a stream. A span without a sample (more buckets than samples) is (0, 0).

    Raises:
        MediaError: as `decode_audio`.
    """
    if buckets < 1:
        raise ValueError(f"buckets must be positive, not {buckets}")
    num_samples = read_clip(path).num_samples
    low, high = np.full(buckets, np.inf, np.float32), np.full(buckets, -np.inf, np.float32)
    position = 0
    for chunk in _decode_sound(Path(path)):
        bucket = (position + np.arange(len(chunk))) * buckets // num_samples
        np.minimum.at(low, bucket, chunk)
        np.maximum.at(high, bucket, chunk)
        position += len(chunk)
    peaks = np.stack([low, high], axis=1)
    return np.where(np.isfinite(peaks), peaks, np.float32(0))


def _decode_sound(path: Path) -> Iterator[Waveform]:
    """The sound as mono chunks, exactly as many samples as were written (AAC pads its last frame)."""
    with _reading(path), _open(path) as container:
        stream = _audio_stream(path, container)
        remaining = _num_samples(stream)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
        for frame in container.decode(stream):
            for mono in resampler.resample(frame):
                chunk = mono.to_ndarray()[0, :remaining].astype(np.float32, copy=False)
                remaining -= len(chunk)
                yield chunk
        if remaining:
            raise _cut_short(path)


def _open(path: Path) -> InputContainer:
    """The mp4 at `path`, read by the mp4 reader alone: other formats may name further files to open."""
    if not path.exists():
        raise MediaError(f"There is no file {path}.", "Check the path.")
    if not path.is_file():
        raise MediaError(f"{path} is not a file.", "Give the path of a clip.")
    return av.open(os.path.realpath(path), "r", format="mp4", metadata_errors="replace")


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise MediaError(f"{path} has no picture.", "Choose a clip with a picture.")
    stream = container.streams.video[0]
    _check_codec(path, stream, "h264")
    stream.thread_type = "AUTO"
    return stream


def _audio_stream(path: Path, container: InputContainer) -> AudioStream:
    if not container.streams.audio:
        raise MediaError(f"{path} has no sound.", "Choose a clip with sound.")
    stream = container.streams.audio[0]
    _check_codec(path, stream, "aac")
    return stream


def _check_codec(path: Path, stream: VideoStream | AudioStream, name: str) -> None:
    """A stranger's file gets no decoder but the two that our clips need."""
    context = stream.codec_context  # None where libavcodec knows no decoder
    if context is None or context.name != name:
        raise MediaError(f"{path} is not an mp4 with h264 and AAC.", "Convert it, or choose another clip.")


def _num_samples(stream: AudioStream) -> int:
    return round((stream.duration or 0) * (stream.time_base or 0) * stream.rate)


def _to_rgb(frame: VideoFrame) -> Frame:
    """A decoded frame as `write_clip` encodes them: BT.709, limited range."""
    return cast(
        "Frame",
        frame.to_ndarray(
            format="rgb24",
            src_colorspace=_BT709,
            dst_colorspace=_BT709,
            src_color_range=_LIMITED_RANGE,
            dst_color_range=_FULL_RANGE,
            interpolation=_SCALER_FLAGS,
        ),
    )


def _cut_short(path: Path) -> MediaError:
    return MediaError(f"{path} is cut short.", "Copy it again, or make the clip anew.")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of the file system and of the decoders, in words."""
    try:
        yield
    except (OSError, FFmpegError) as error:
        raise MediaError(
            f"{path} cannot be read as a clip: {error.strerror or error}.",
            "Give an mp4 that plays.",
        ) from error
