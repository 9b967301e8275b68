"""Presets: ours are worth having and faultless, the user's come from clips and are read with care."""

from pathlib import Path

import pytest

from ovi_studio.errors import InvalidInputError
from ovi_studio.lint import lint
from ovi_studio.presets import LENGTHS, builtin_presets, read_preset, save_preset, user_presets
from ovi_studio.prompt import Dialect, parse, to_dialect
from ovi_studio.request import Adapter, GenerationRequest, ImageFrame
from ovi_studio.variants import VARIANTS, get_variant

OURS = {preset.name: preset for preset in builtin_presets()}
SECONDS = {"5s": get_variant("720x720_5s").duration, "10s": get_variant("960x960_10s").duration}


def test_the_handful() -> None:
    assert set(OURS) == {
        "talking-portrait", "two-person-dialogue", "street-scene", "music", "sound-effects-only", "quick-draft",
        "final-quality", "distilled",
    }  # fmt: skip
    assert all(preset.prompts.keys() == set(LENGTHS) and preset.description for preset in OURS.values())


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", OURS)
def test_the_linter_is_silent(name: str, length: str, dialect: Dialect) -> None:
    prompt = to_dialect(OURS[name].prompts[length], dialect)
    assert lint(prompt, dialect, SECONDS[length]) == ()
    assert len(parse(prompt).captions) == 1
    assert len(prompt) > 150, "it is worked out"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OURS)
def test_every_model_takes_every_preset(name: str, variant: str) -> None:
    preset, model = OURS[name], get_variant(variant)
    request = preset.request(variant).resolved()
    assert request.variant == variant
    assert ("<AUDCAP>" in request.prompt) is (model.caption_dialect == "audcap")
    length = "10s" if variant == "960x960_10s" else "5s"
    assert request.prompt == to_dialect(preset.prompts[length], Dialect(model.caption_dialect))
    assert all(getattr(request, field) == value for field, value in preset.settings.items() if field != "aspect")


def test_presets_differ() -> None:
    assert len({str(sorted(preset.settings.items())) for preset in OURS.values()}) >= 7
    assert len({prompt for preset in OURS.values() for prompt in preset.prompts.values()}) == 16


def test_a_clips_settings_become_a_preset(tmp_path: Path) -> None:
    request = GenerationRequest.create(
        prompt='He said "no" \\ \x7f ü 🦊\n<S>a<E> <AUDCAP>b<ENDAUDCAP>',
        variant="720x720_5s",
        seed=4,
        size=(704, 704),
        snap=False,
        num_inference_steps=12,
        first_frame=ImageFrame(path="/secret/me.png", name="me.png"),
        adapters=(Adapter(id="a/b", strength=0.5),),
    )
    saved = save_preset("Mein Größtes!", request, folder=tmp_path / "presets")
    (read,), faults = user_presets(tmp_path / "presets")
    assert (read, faults) == (saved, ())
    again = read.request()
    assert again.prompt == request.prompt
    assert (again.size, again.num_inference_steps, again.adapters) == ((704, 704), 12, request.adapters)
    assert (again.seed, again.first_frame) == (None, None)
    assert "secret" not in next((tmp_path / "presets").iterdir()).read_text()
    assert read.own
    with pytest.raises(InvalidInputError, match="already"):
        save_preset("mein größtes", request, folder=tmp_path / "presets")


@pytest.mark.parametrize("title", ["", "  ", "!?", "x" * 81])
def test_titles_that_cannot_be(tmp_path: Path, title: str) -> None:
    with pytest.raises(InvalidInputError, match="called"):
        save_preset(title, GenerationRequest.create(prompt="a"), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "title = 'x'",
        "title = 'x'\nprompts = 3",
        "title = 3\n[prompts]\n5s = 'a'",
        "title = 'x'\n[prompts]\n7s = 'a'",
        "title = 'x'\n[prompts]\n5s = ''",
        "title = 'x'\n[prompts]\n5s = 4",
        "title = 'x'\n[settings]\nsteps = 3\n[prompts]\n5s = 'a'",
        "title = 'x'\n[settings]\nseed = 3\n[prompts]\n5s = 'a'",
        "title = 'x'\n[settings]\nshift = 1979-05-27\n[prompts]\n5s = 'a'",
        "title = 'x'\n[settings]\nfirst_frame = {kind = 'image', name = 'a', path = '/x'}\n[prompts]\n5s = 'a'",
        "title = 'x'\n[settings]\nvariant = 'gone'\n[prompts]\n5s = 'a'",
        "title = 'x'\n[prompts]\n5s = 'a'\n" + "x = [" * 5000,
        "not toml",
        "\xff",
    ],
)
def test_files_that_are_no_presets(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInputError):
        read_preset(path)
    presets, faults = user_presets(tmp_path)
    assert presets == ()
    assert len(faults) == 1
    assert str(path) in str(faults[0])


def test_no_folder_means_no_presets_of_ones_own(tmp_path: Path) -> None:
    assert user_presets(tmp_path / "gone") == ((), ())
