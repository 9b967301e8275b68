"""How long words take to say, by language; for the linter, and for whoever writes to the length of a clip."""

import re

# Words read aloud per minute, measured: Trauzettel-Klosinski & Dietz 2012, Standardized Assessment of
# Reading Performance (IReST), doi:10.1167/iovs.11-8284, 25 to 36 young adults a language; Greek: Gleni et
# al. 2019, doi:10.1097/OPX.0000000000001434, the same texts.
_WORDS_PER_MINUTE = {
    "ar": 138, "de": 179, "el": 208, "en": 228, "es": 218, "fi": 161, "fr": 195, "he": 187, "it": 188,
    "nl": 202, "pl": 166, "pt": 181, "ru": 184, "sl": 180, "sv": 199, "tr": 166,
}  # fmt: skip
_MEAN_WORDS_PER_MINUTE = 184  # measured, same study: the mean of its 17 languages; for all other languages

# Characters read aloud per minute, for scripts that don't put spaces between words (and for Korean, whose
# characters are syllables). zh and ja measured, same study; ko guessed from Japanese, whose 447 syllables a
# minute there are about its pace; th guessed as three letters and marks to a syllable, 250 syllables.
_CHARACTERS_PER_MINUTE = {"zh": 255, "ja": 357, "ko": 400, "th": 750}

# Those are the speeds of fluent young readers. Derived: Brysbaert 2019, doi:10.1016/j.jml.2019.104047, finds
# 183 words a minute over 77 studies of English read aloud, where the study above has 228.
_NORMAL_PACE = 183 / 228

_SCRIPTS = (  # the first script found names the language; kana before Han, because Japanese uses both
    ("ja", re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")),
    ("ko", re.compile(r"[\u1100-\u11ff\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")),
    ("th", re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")),  # and Lao, Burmese, Khmer
    ("ru", re.compile(r"[\u0400-\u052f]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("el", re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
)
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff\uff66-\uff9f]"
)
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def detect_language(words: str) -> str:
    """The language that the script of `words` suggests; Latin letters are taken for English."""
    return next((language for language, script in _SCRIPTS if script.search(words)), "en")


def speech_seconds(words: str, language: str | None = None) -> float:
    """Seconds to say `words` at a normal pace.

    Args:
        words: what is spoken, without tags.
        language: a code such as "en" or "pt-BR"; None goes by the script. A language that no study covers
            gets the mean of those that one does.
    """
    language = _base(language) or detect_language(words)
    unspaced = len(_UNSPACED.findall(words))
    spaced = len(_WORD.findall(_UNSPACED.sub(" ", words) if unspaced else words))
    seconds = spaced / _words_per_second(language)
    if unspaced:
        characters = language if language in _CHARACTERS_PER_MINUTE else detect_language(words)
        seconds += unspaced / _characters_per_second(characters)
    return seconds


def word_budget(seconds: float, language: str | None = None) -> int:
    """How many words fit in `seconds` at a normal pace; for zh, ja, ko and th how many characters."""
    language = _base(language) or "en"
    per_second = _characters_per_second(language) if language in _CHARACTERS_PER_MINUTE else _words_per_second(language)
    return max(0, int(seconds * per_second))


def counts_characters(language: str) -> bool:
    """Whether `word_budget` counts characters in this language."""
    return _base(language) in _CHARACTERS_PER_MINUTE


def _base(language: str | None) -> str:
    return re.split(r"[-_]", language.strip().lower())[0] if language else ""


def _words_per_second(language: str) -> float:
    return _WORDS_PER_MINUTE.get(language, _MEAN_WORDS_PER_MINUTE) * _NORMAL_PACE / 60


def _characters_per_second(language: str) -> float:
    return _CHARACTERS_PER_MINUTE.get(language, _CHARACTERS_PER_MINUTE["th"]) * _NORMAL_PACE / 60
