"""Dialects, tag stripping and tokenizer cleaning against rows recorded from the reference."""

from typing import Any

import pytest

from ovi_studio.prompt import Dialect, clean_text, strip_tags, to_dialect
from tests.goldens import cases

pytestmark = pytest.mark.golden

DIALECTS = {
    "720x720_5s": Dialect.AUDCAP,
    "960x960_5s": Dialect.AUDIO_PREFIX,
    "960x960_10s": Dialect.AUDIO_PREFIX,
}


def rows(table: str) -> list[dict[str, Any]]:
    """The recorded rows of one function; a recording may leave a function out."""
    recorded: list[dict[str, Any]] = cases.facts("preprocessing")["rows"].get(table, [])
    return recorded


@pytest.mark.parametrize("row", rows("formatter"), ids=lambda row: f"{row['model']}-{row['text'][:24]!a}")
def test_dialect_of_the_variant(row: dict[str, Any]) -> None:
    assert to_dialect(row["text"], DIALECTS[row["model"]]) == row["out"]


@pytest.mark.parametrize("row", rows("clean_text"), ids=lambda row: f"{row['text'][:24]!a}")
def test_tags_stripped_for_an_image_model(row: dict[str, Any]) -> None:
    assert strip_tags(row["text"]) == row["out"]


@pytest.mark.parametrize("row", rows("tokenizer_clean"), ids=lambda row: f"{row['text'][:24]!a}")
def test_text_cleaned_for_the_tokenizer(row: dict[str, Any]) -> None:
    assert clean_text(row["text"]) == row["out"]
