"""Captions for footage: seven frames and the sound to a multimodal model of the user's, a prompt back.

Any captioner is a callable `(Footage) → str`. The built-in one asks an OpenAI-compatible server (`chat.py`).
"""

import base64
import io
from dataclasses import dataclass
from typing import Any, Protocol

import PIL.Image

from ovi_studio.chat import Endpoint
from ovi_studio.media import wav_bytes
from ovi_studio.prompt import Dialect, to_dialect
from ovi_studio.training.filters import looks
from ovi_studio.training.footage import Footage
from ovi_studio.variants import CaptionDialect

MAX_CAPTION = 4000  # characters; guessed: several times what 512 tokens hold
LONGEST_SIDE = 512  # pixels of a frame that is sent
QUESTION = """These are seven frames of a short clip, evenly spaced from its first to its last, and its sound.
Describe the clip as one paragraph for a model that makes clips: who and what is to be seen, where, what they do, \
how the camera moves. Write every spoken word, in order, as it is said, each speech between the tags <S> and <E> where \
it happens. End with what is to be heard besides the words (voices, music, noises, the room) after the word "Audio:". \
Answer with this paragraph alone."""


class Captioner(Protocol):
    """Anything that puts footage into words."""

    def __call__(self, footage: Footage) -> str:
        """A prompt that asks for this clip; "" where there is none.

        Raises:
            OviStudioError: nothing can be asked any more.
        """


@dataclass(frozen=True)
class ChatCaptioner:
    """Asks a multimodal model.

    Args:
        endpoint: its server.
        dialect: how the model that will be trained reads captions of the sound.
    """

    endpoint: Endpoint
    dialect: CaptionDialect

    def __call__(self, footage: Footage) -> str:
        """The model's answer in the dialect; "" where it is no caption."""
        answer = " ".join(self.endpoint.answer(question_about(footage)).split())
        if not answer or len(answer) > MAX_CAPTION:
            return ""
        return to_dialect(answer, Dialect(self.dialect))


def question_about(footage: Footage) -> list[dict[str, Any]]:
    """The question's parts: the words, seven pictures, and the sound."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": QUESTION}]
    for frame in looks(footage.frames):
        image = PIL.Image.fromarray(frame)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        data = io.BytesIO()
        image.save(data, format="JPEG", quality=85)
        url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    sound = base64.b64encode(wav_bytes(footage.waveform, footage.sample_rate)).decode()
    parts.append({"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}})
    return parts
