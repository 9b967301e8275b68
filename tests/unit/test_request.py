import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ovi_studio.errors import InvalidRequestError
from ovi_studio.request import Adapter, GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.variants import VARIANTS, get_variant

create = GenerationRequest.create

FULL: dict[str, Any] = {
    "prompt": "A dog says <S>woof<E>",
    "video_negative_prompt": "blur",
    "audio_negative_prompt": "",
    "variant": "960x960_10s",
    "modality": "video",
    "first_frame": ImageFrame(path="/home/me/dog.png", name="dog.png", sha256="a" * 64),
    "size": (704, 1280),
    "seed": 2**32 - 1,
    "num_inference_steps": 12,
    "solver": "dpm++",
    "shift": 3.5,
    "video_guidance_scale": 1.0,
    "audio_guidance_scale": 2.5,
    "video_guidance_interval": (0.1, 0.8),
    "audio_guidance_interval": (0.0, 0.0),
    "slg_layer": 0,
    "adapters": (Adapter(id="me/dogs", strength=0.5, tower="video"),),
    "takes": 3,
    "quality": "smallest",
}


# --- What is right ----------------------------------------------------------------------------------------


def test_a_prompt_is_enough() -> None:
    request = create(prompt="A dog")
    assert (request.variant, request.modality, request.takes, request.quality) == ("nano", "both", 1, "auto")
    assert request.seed is None
    assert request.first_frame is None


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "A dog"},
        FULL,
        {"prompt": "ünïcödé 犬 \n tabs\t", "first_frame": GeneratedFrame(prompt="A dog", seed=3)},
        {"prompt": "A", "aspect": "16:9", "seed": 0},
        {"prompt": "A", "first_frame": {"kind": "image", "name": "a.png"}},
    ],
)
def test_json_round_trip(fields: dict[str, Any]) -> None:
    request = create(**fields)
    assert GenerationRequest.from_json(request.model_dump_json()) == request


def test_it_is_frozen_and_hashable() -> None:
    request = create(**FULL)
    with pytest.raises(ValidationError):
        request.seed = 1  # type: ignore[misc]
    assert len({request, create(**FULL)}) == 1


# --- What is wrong ----------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"prompt": ""}, ["prompt is empty", "Describe"]),
    ({"prompt": " \n\t "}, ["prompt is empty"]),
    ({"prompt": "x" * 10_001}, ["prompt is too long: 10001", "1 to 10000"]),
    ({"prompt": None}, ["prompt cannot be None"]),
    ({"prompt": "\ud800"}, ["prompt cannot be"]),
    ({"variant": "nanno"}, ["'nanno'", "720x720_5s"]),
    ({"variant": "n" * 3000}, ["variant is too long"]),
    ({"modality": "smell"}, ["modality cannot be 'smell'", "'both', 'video' or 'audio'"]),
    ({"solver": "heun"}, ["solver cannot be 'heun'", "euler"]),
    ({"quality": "best"}, ["quality cannot be 'best'", "'exact'"]),
    ({"num_inference_steps": 0}, ["num_inference_steps cannot be 0", "1 to 200"]),
    ({"num_inference_steps": 10_000}, ["num_inference_steps cannot be 10000", "1 to 200"]),
    ({"num_inference_steps": True}, ["num_inference_steps cannot be True"]),
    ({"num_inference_steps": 5.0}, ["num_inference_steps cannot be 5.0"]),
    ({"num_inference_steps": "5"}, ["num_inference_steps cannot be '5'"]),
    ({"seed": -1}, ["seed cannot be -1", "4294967295"]),
    ({"seed": 2**32}, ["seed cannot be 4294967296"]),
    ({"seed": 10**6000}, ["seed cannot be so large a number"]),
    ({"seed": True}, ["seed cannot be True"]),
    ({"takes": 0}, ["takes cannot be 0", "1 to 100"]),
    ({"takes": 101}, ["takes cannot be 101"]),
    ({"shift": 0.0}, ["shift cannot be 0.0", "0.1 to 20"]),
    ({"shift": math.nan}, ["shift cannot be nan"]),
    ({"video_guidance_interval": (0.8, 0.1)}, ["0.8 to 0.1", "0.1 and 0.8"]),
    ({"audio_guidance_interval": (-0.1, 1.0)}, ["-0.1 to 1", "from 0 to 1"]),
    ({"audio_guidance_interval": (0.5,)}, ["audio_guidance_interval", "two shares"]),
    ({"audio_guidance_interval": (0.5, math.nan)}, ["audio_guidance_interval", "two shares"]),
    ({"video_guidance_scale": math.inf}, ["video_guidance_scale cannot be inf", "1 to 30"]),
    ({"audio_guidance_scale": -3.0}, ["audio_guidance_scale cannot be -3.0"]),
    ({"audio_guidance_scale": False}, ["audio_guidance_scale cannot be False"]),
    ({"slg_layer": -1}, ["slg_layer cannot be -1"]),
    ({"slg_layer": 4}, ["slg_layer cannot be 4", "nano has 4 blocks", "1 to 3"]),
    ({"slg_layer": 30, "variant": "720x720_5s"}, ["720x720_5s has 30 blocks"]),
    ({"size": (0, 96)}, ["0x96", "32 to 4096"]),
    ({"size": (-96, 96)}, ["-96x96", "32 to 4096"]),
    ({"size": (100_000, 100_000)}, ["100000x100000", "32 to 4096"]),
    ({"size": (10**30, 96)}, ["x96 pixels is not possible"]),
    ({"size": (10**6000, 96)}, ["so large a numberx96"]),
    ({"size": (64, 640)}, ["too thin", "at most 4 times"]),
    ({"size": (96,)}, ["size.1 is missing", "height and width"]),
    ({"size": "96x96"}, ["size cannot be '96x96'", "height and width"]),
    ({"size": (96.5, 96)}, ["size.0 cannot be 96.5"]),
    ({"size": (100, 100), "snap": False}, ["nano cannot make 100x100", "multiples of 32"]),
    ({"size": (256, 256), "snap": False}, ["nano cannot make 256x256"]),
    ({"size": (96, 96), "aspect": "1:1"}, ["Both size and aspect"]),
    ({"aspect": "wide"}, ["'wide'", "16:9"]),
    ({"aspect": "0:9"}, ["'0:9'"]),
    ({"aspect": "-16:9"}, ["'-16:9'"]),
    ({"aspect": "100:1"}, ["'100:1'", "at most 4 times"]),
    ({"first_frame": {"kind": "movie"}}, ["first_frame cannot be", "an image"]),
    ({"first_frame": "dog.png"}, ["first_frame cannot be 'dog.png'", "an image"]),
    ({"first_frame": {"kind": "image"}}, ["first_frame.image.name is missing"]),
    ({"first_frame": {"kind": "image", "name": "../dog.png"}}, ["first_frame.image.name cannot be"]),
    ({"first_frame": {"kind": "image", "name": "a", "sha256": "no"}}, ["first_frame.image.sha256"]),
    ({"first_frame": GeneratedFrame(), "modality": "audio"}, ["first frame has no use", "modality"]),
    ({"adapters": ({"id": "../../etc"},)}, ["adapters.0.id cannot be '../../etc'"]),
    ({"adapters": ({"id": "a", "strength": 99.0},)}, ["adapters.0.strength cannot be 99.0"]),
    ({"adapters": ({"id": "a", "tower": "left"},)}, ["adapters.0.tower cannot be 'left'"]),
    ({"adapters": ({"id": "a", "size": 1},)}, ["'adapters.0.size' is not a field"]),
    ({"cfg": 7}, ["no field 'cfg'", "video_guidance_scale"]),
    ({"schema_version": 2}, ["schema_version cannot be 2", "update Ovi Studio"]),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=lambda value: next(iter(value)))
def test_each_fault_has_a_sentence_and_a_remedy(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        create(**{"prompt": "A dog", **fields})
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert "http" not in message
    assert "pydantic" not in message
    assert len(message) < 500
    assert caught.value.problem.endswith(".")
    assert caught.value.remedy.endswith(".")
    assert caught.value.exit_code == 2


def test_a_request_without_a_prompt() -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt is missing\. Give a text"):
        create()


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "null", '"prompt"', "[" * 5000, '{"prompt": "\\ud800"}', b"\xff\xfe",
     '{"prompt": "a", "shift": NaN}', '{"prompt": "a", "size": [[[[]]]]}',
     '{"prompt": "a", "seed": ' + "9" * 9000 + "}", '{"prompt": "a", "seed": 1e999}'],
)  # fmt: skip
def test_bad_json_is_an_invalid_request(text: str | bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        GenerationRequest.from_json(text)
    assert len(str(caught.value)) < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(list(GenerationRequest.model_fields)), json_values, max_size=5) | json_values)
def test_whatever_a_clip_carries_is_a_request_or_an_invalid_one(data: object) -> None:
    if isinstance(data, dict):
        data.setdefault("prompt", "A dog")
    try:
        request = GenerationRequest.from_embedded(data)
    except InvalidRequestError as error:
        message = str(error)
        request = None
    if request is None:
        assert "\n" not in message
    else:
        assert GenerationRequest.from_embedded(request.embedded()).embedded() == request.embedded()


# --- Steps, shifts and solvers ----------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 5.0, 7.0, 12.0, 20.0, 0.2])
def test_unipc_is_bounded_where_the_real_scheduler_repeats_timesteps(shift: float) -> None:
    numpy = pytest.importorskip("numpy")
    diffusers = pytest.importorskip("diffusers")

    def repeats(steps: int) -> bool:
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
        )
        scheduler.set_timesteps(sigmas=numpy.linspace(float(numpy.float32(0.999)), 0, steps + 1)[:-1])
        return len(set(scheduler.timesteps.tolist())) < steps

    def refused(steps: int) -> bool:
        try:
            create(prompt="A", num_inference_steps=steps, shift=shift)
        except InvalidRequestError as error:
            assert "repeats timesteps" in str(error)  # noqa: PT017 - the other outcome is fine too
            return True
        return False

    counts = [1, 2, 30, *range(40, 201, 3), 200]
    assert [refused(steps) for steps in counts] == [repeats(steps) for steps in counts]


def test_euler_takes_any_shift() -> None:
    create(prompt="A", num_inference_steps=200, shift=20.0, solver="euler")
    with pytest.raises(InvalidRequestError, match=r"dpm\+\+ repeats timesteps at 200 steps and shift 20"):
        create(prompt="A", num_inference_steps=200, shift=20.0, solver="dpm++")


# --- Size -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "image_size", "expected"),
    [
        ({"variant": "720x720_5s", "size": (720, 720)}, None, (704, 704)),
        ({"variant": "720x720_5s", "size": (448, 1120)}, None, (448, 1152)),
        ({"variant": "960x960_5s", "aspect": "16:9"}, None, (704, 1280)),
        ({"variant": "960x960_5s", "aspect": "9:16"}, None, (1280, 704)),
        ({"variant": "960x960_5s", "aspect": "1:1"}, (500, 1000), (960, 960)),
        ({"variant": "720x720_5s", "size": (64, 96), "snap": False}, None, (64, 96)),
        ({"variant": "nano"}, None, (96, 96)),
    ],
)
def test_the_size_a_clip_really_gets(
    fields: dict[str, Any], image_size: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    assert create(prompt="A", **fields).clip_size(image_size) == expected


def test_an_image_gives_its_own_aspect_when_nothing_else_does() -> None:
    request = create(prompt="A", variant="960x960_5s")
    height, width = request.clip_size((1080, 1920))
    assert width / height == pytest.approx(16 / 9, rel=0.05)


# --- Resolved, takes, embedded ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(VARIANTS))
def test_resolved_leaves_nothing_open(name: str) -> None:
    request = create(prompt="A", variant=name, aspect="3:2").resolved()
    defaults = get_variant(name).defaults
    assert request.num_inference_steps == defaults.num_inference_steps
    assert (request.solver, request.shift, request.slg_layer) == (
        defaults.solver,
        defaults.shift,
        defaults.slg_layer,
    )
    assert request.video_negative_prompt == "jitter, bad hands, blur, distortion"
    assert request.audio_negative_prompt == "robotic, muffled, echo, distorted"
    assert request.seed is not None
    assert request.size is not None
    assert request.aspect is None
    open_fields = [field for field, value in request if value is None]
    assert sorted(open_fields) == ["aspect", "first_frame"]


def test_resolved_keeps_what_was_asked_for() -> None:
    request = create(**FULL, aspect=None).resolved()
    for field in set(FULL) - {"size"}:
        assert getattr(request, field) == FULL[field], field


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(VARIANTS)),
    st.tuples(st.integers(32, 4096), st.integers(32, 4096)).filter(lambda size: max(size) <= 4 * min(size)),
    st.sampled_from(["size", "aspect", "image"]),
)
def test_resolving_twice_changes_nothing(name: str, size: tuple[int, int], given_as: str) -> None:
    """Snapping a snapped size may move it again: what is stored must not be snapped a second time."""
    aspect = f"{size[1]}:{size[0]}"
    ways: dict[str, dict[str, Any]] = {"size": {"size": size}, "aspect": {"aspect": aspect}, "image": {}}
    request = create(prompt="A", variant=name, **ways[given_as])
    once = request.resolved(image_size=size)
    assert once.size == request.clip_size(size)
    assert GenerationRequest.from_embedded(once.embedded()).resolved() == once


def test_seeds_are_drawn_once_and_written_down() -> None:
    request = create(prompt="A")
    drawn = {request.with_real_seed().seed for _ in range(8)}
    assert len(drawn) > 1
    assert all(seed is not None and 0 <= seed < 2**32 for seed in drawn)
    assert create(prompt="A", seed=0).with_real_seed().seed == 0


def test_takes_count_their_seeds_up() -> None:
    takes = create(prompt="A", seed=2**32 - 2, takes=3).each_take()
    assert [take.seed for take in takes] == [2**32 - 2, 2**32 - 1, 0]
    assert {take.takes for take in takes} == {1}
    assert len({take.seed for take in create(prompt="A", takes=5).each_take()}) == 5


def test_a_generated_frame_follows_the_seed_of_its_take() -> None:
    takes = create(prompt="A", seed=7, takes=2, first_frame=GeneratedFrame(prompt="B")).each_take()
    frames = [take.resolved().first_frame for take in takes]
    assert frames == [GeneratedFrame(prompt="B", seed=7), GeneratedFrame(prompt="B", seed=8)]


def test_embedded_names_no_path_of_this_machine() -> None:
    frame = ImageFrame(path="/home/me/secret/dog.png", name="dog.png", sha256="ab" * 32)
    data = create(prompt="A", first_frame=frame).embedded()
    assert "secret" not in json.dumps(data)
    assert data["first_frame"] == {"kind": "image", "name": "dog.png", "sha256": "ab" * 32}
    assert GenerationRequest.from_embedded(data).first_frame == frame.model_copy(update={"path": None})


def test_an_embedded_path_is_not_believed() -> None:
    data = {"prompt": "A", "first_frame": {"kind": "image", "name": "a.png", "path": "/etc/passwd"}}
    frame = GenerationRequest.from_embedded(data).first_frame
    assert isinstance(frame, ImageFrame)
    assert frame.path is None


def test_replace_checks_again() -> None:
    request = create(prompt="A", seed=3)
    assert request.replace(takes=4) == create(prompt="A", seed=3, takes=4)
    with pytest.raises(InvalidRequestError, match="takes"):
        request.replace(takes=0)


def test_no_torch() -> None:
    code = "import ovi_studio.request, sys; print({'torch', 'numpy', 'av'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
