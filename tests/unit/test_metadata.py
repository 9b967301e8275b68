"""The settings a clip carries: what goes in comes out, and what others put there is refused."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi_studio.errors import MediaError
from ovi_studio.metadata import MAX_METADATA_BYTES, METADATA_KEY, dump_metadata, parse_metadata

FILE = Path("clip.mp4")
SCALARS = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
REQUESTS = st.dictionaries(st.text(), SCALARS | st.text() | st.lists(st.text()), max_size=8)


@given(REQUESTS)
def test_round_trip(request_fields: dict[str, object]) -> None:
    read = parse_metadata(FILE, dump_metadata({"request": request_fields}))
    assert read["request"] == request_fields
    assert read[METADATA_KEY]


@given(st.text() | st.text().map(lambda text: METADATA_KEY + text) | REQUESTS.map(json.dumps))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(MediaError):
        assert METADATA_KEY in parse_metadata(FILE, text)


def test_the_version_is_ours_even_when_old_metadata_is_embedded_again() -> None:
    assert parse_metadata(FILE, dump_metadata({METADATA_KEY: "0.0.0-old"}))[METADATA_KEY] != "0.0.0-old"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("Made with another tool", id="prose"),
        pytest.param('{"request": {}}', id="another's JSON"),
    ],
)
def test_of_others(text: str) -> None:
    with pytest.raises(MediaError, match="not made by Ovi Studio"):
        parse_metadata(FILE, text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"ovi_studio": "1", ', id="cut short"),
        pytest.param('["ovi_studio"]', id="a list"),
        pytest.param('{"a": "ovi_studio"}', id="key missing"),
        pytest.param('{"ovi_studio": "1", "seed": 1' + "0" * 30 + "}", id="huge integer"),
        pytest.param('{"ovi_studio": "1", "seed": ' + "1" * 100_000 + "}", id="quadratic integer"),
        pytest.param('{"ovi_studio": "1", "scale": 1e999}', id="infinite float"),
        pytest.param('{"ovi_studio": "1", "scale": NaN}', id="NaN"),
        pytest.param('{"ovi_studio": "1", "a": ' + "[" * 40 + "]" * 40 + "}", id="deep"),
        pytest.param('{"ovi_studio": "1", "a": ' + "[" * 500_000, id="stack-breaking"),
        pytest.param('{"ovi_studio": "1", "a": "' + "x" * MAX_METADATA_BYTES + '"}', id="huge"),
    ],
)
def test_damaged(text: str) -> None:
    with pytest.raises(MediaError, match="damaged"):
        parse_metadata(FILE, text)


def test_too_long_to_read_back_is_refused_when_written() -> None:
    with pytest.raises(MediaError, match="too long"):
        dump_metadata({"request": {"prompt": "x" * MAX_METADATA_BYTES}})
