"""The paper's measures of sound, by models of the user's: `python -m ovi_studio.training judge CLIP… --whisper DIR`.

    WER   words that Whisper hears otherwise than the prompt's <S>…<E> say them
    CLAP  cosine of the sound and the prompt's caption of the sound
    FD    Fréchet distance of the clips' sounds from real ones, in a tagger's features
    IS    inception score of a tagger's verdicts

Each runs where its model is given: a folder, or a name that huggingface_hub has in its cache. Whisper: any
`WhisperForConditionalGeneration`; CLAP: any `ClapModel`; tagger: any `ASTForAudioClassification`. Numbers depend on
these models, and compare only with numbers of the same ones.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ovi_studio.errors import OviStudioError
from ovi_studio.media import Waveform, decode_audio, read_metadata
from ovi_studio.prompt import parse
from ovi_studio.training.recogniser import word_errors

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """A clip's sound, and what its prompt asks for."""

    waveform: Waveform
    sample_rate: int
    speech: str
    caption: str


class Whisper:
    """Writes down what is said."""

    def __init__(self, name: str) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor  # noqa: PLC0415

        self._processor: Any = WhisperProcessor.from_pretrained(name)
        self._model: Any = WhisperForConditionalGeneration.from_pretrained(name).eval()

    @torch.no_grad()
    def words(self, heard: Heard) -> str:
        """The words."""
        rate = self._processor.feature_extractor.sampling_rate
        inputs = self._processor(resampled(heard, rate), sampling_rate=rate, return_tensors="pt")
        tokens = self._model.generate(inputs.input_features)
        return str(self._processor.batch_decode(tokens, skip_special_tokens=True)[0])


class Clap:
    """Compares sounds with words."""

    def __init__(self, name: str) -> None:
        from transformers import ClapModel, ClapProcessor  # noqa: PLC0415

        self._processor: Any = ClapProcessor.from_pretrained(name)
        self._model: Any = ClapModel.from_pretrained(name).eval()

    @torch.no_grad()
    def likeness(self, heard: Heard) -> float:
        """Cosine of the sound's and the caption's embedding."""
        rate = self._processor.feature_extractor.sampling_rate
        sound = self._processor(audio=resampled(heard, rate), sampling_rate=rate, return_tensors="pt")
        words = self._processor(text=[heard.caption], return_tensors="pt", padding=True)
        outputs = self._model(**sound, **words)
        return float(torch.nn.functional.cosine_similarity(outputs.audio_embeds, outputs.text_embeds)[0])


class Tagger:
    """Says what a sound is of."""

    def __init__(self, name: str) -> None:
        from transformers import ASTFeatureExtractor, ASTForAudioClassification  # noqa: PLC0415

        self._extractor: Any = ASTFeatureExtractor.from_pretrained(name)
        self._model: Any = ASTForAudioClassification.from_pretrained(name).eval()

    @torch.no_grad()
    def look(self, heard: Heard) -> tuple[Matrix, Matrix]:
        """Features (D,), and the probability of each tag (T,), of which several may be right."""
        rate = self._extractor.sampling_rate
        inputs = self._extractor(resampled(heard, rate), sampling_rate=rate, return_tensors="pt")
        outputs = self._model(**inputs, output_hidden_states=True)
        features = outputs.hidden_states[-1].mean(1)[0]
        return features.double().numpy(), outputs.logits[0].softmax(-1).double().numpy()


def word_error_rate(heard: Sequence[str], said: Sequence[str]) -> float:
    """Words put in, left out or mistaken, of all that were to be said; without case and punctuation.

    Raises:
        OviStudioError: nothing was to be said.
    """
    pairs = [(_plain(one), _plain(other)) for one, other in zip(heard, said, strict=True)]
    count = sum(len(other) for _, other in pairs)
    if not count:
        raise OviStudioError("No clip has speech in its prompt.", "Leave out --whisper.")
    return sum(word_errors(one, other) for one, other in pairs) / count


def frechet_distance(one: Matrix, other: Matrix) -> float:
    """Between normal distributions fitted to two sets of features (N, D) (Heusel et al. 2017).

    Raises:
        OviStudioError: a set has a single sample.
    """
    if min(len(one), len(other)) < 2:
        raise OviStudioError("A Fréchet distance needs at least two sounds on each side.", "Give more clips.")
    means = [features.mean(0) for features in (one, other)]
    spreads = [np.atleast_2d(np.cov(features, rowvar=False)) for features in (one, other)]
    # The trace of the root of a product of covariances is that of the roots of its eigenvalues.
    roots = np.sqrt(np.linalg.eigvals(spreads[0] @ spreads[1]).real.clip(0))
    distance = np.square(means[0] - means[1]).sum() + np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * roots.sum()
    return float(max(distance, 0.0))


def inception_score(probabilities: Matrix) -> float:
    """How sure each verdict (N, T) is, and how different they are from each other (Salimans et al. 2016); 1 … T."""
    p = probabilities.clip(1e-12)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def resampled(heard: Heard, rate: int) -> Waveform:
    """The sound at another rate, cut off in the spectrum."""
    if rate == heard.sample_rate:
        return heard.waveform
    count = round(len(heard.waveform) * rate / heard.sample_rate)
    spectrum = np.fft.rfft(heard.waveform.astype(np.float64))
    kept = np.zeros(count // 2 + 1, complex)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    return np.asarray(np.fft.irfft(kept, count) * (count / len(heard.waveform)), np.float32)


def _plain(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w']+", text.lower()))


def read_heard(path: Path) -> Heard:
    """A clip's sound with what its own prompt asks for.

    Raises:
        MediaError: it is no clip of Ovi Studio's with sound.
    """
    waveform, rate = decode_audio(path)
    prompt = parse(str(dict(read_metadata(path).get("request") or {}).get("prompt", "")))
    speech = " ".join(speech.words for speech in prompt.speeches)
    return Heard(waveform, rate, speech, " ".join(caption.words for caption in prompt.captions))


def main(argv: Sequence[str]) -> int:
    """Judges clips and prints the numbers as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m ovi_studio.training judge",
        description="Measure the sound of clips by models of your own.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("clips", nargs="+", type=Path, metavar="CLIP", help="mp4 files that Ovi Studio made: each carries its prompt")
    add("--whisper", metavar="MODEL", help="word error rate of the speech")
    add("--clap", metavar="MODEL", help="likeness of the sound and its caption")
    add("--tagger", metavar="MODEL", help="inception score; with --real the Fréchet distance too")
    add("--real", nargs="+", type=Path, default=[], metavar="CLIP", help="clips with real sound, of the same kind")
    arguments = parser.parse_args(argv)
    clips = [read_heard(path) for path in arguments.clips]
    report: dict[str, float] = {"clips": len(clips)}
    if arguments.whisper:
        whisper, speaking = Whisper(arguments.whisper), [clip for clip in clips if clip.speech]
        report["WER"] = word_error_rate([whisper.words(clip) for clip in speaking], [clip.speech for clip in speaking])
    if arguments.clap:
        clap = Clap(arguments.clap)
        report["CLAP"] = float(np.mean([clap.likeness(clip) for clip in clips]))
    if arguments.tagger:
        tagger = Tagger(arguments.tagger)
        features, probabilities = (np.stack(part) for part in zip(*map(tagger.look, clips), strict=True))
        report["IS"] = inception_score(probabilities)
        if arguments.real:
            real = np.stack([tagger.look(read_heard(path))[0] for path in arguments.real])
            report["FD"] = frechet_distance(features, real)
    print(json.dumps(report))  # noqa: T201
    return 0
