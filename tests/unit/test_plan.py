import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovi_studio.errors import InvalidInputError, OutOfMemoryError
from ovi_studio.flux import ImageModel
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime import costs, memory
from ovi_studio.runtime.execution_plan import ExecutionPlan, Preferences
from ovi_studio.runtime.hardware import GB, simulate
from ovi_studio.runtime.memory import Workload
from ovi_studio.runtime.plan import plan, plan_workload, step_down
from ovi_studio.runtime.rates import Rates
from ovi_studio.variants import VARIANTS, Size, get_variant
from tests.unit.plan_table import CLIPS, NANO, TABLE

PRECISIONS = {"b": "bf16", "f": "fp8_compute", "i": "int8", "s": "fp8_storage", "c": "float32"}


def rows(table):
    return [line.split() for line in table.strip().splitlines() if not line.startswith("#")]


CASES = [
    (machine, wish, clip, cell)
    for machine, wish, *cells in rows(TABLE)
    for clip, cell in zip(CLIPS, cells, strict=True)
    if cell != "-"
]


def workload(variant="720x720_5s", size=(704, 704), **fields):
    return Workload(get_variant(variant), Size(*size), **fields)


@pytest.mark.parametrize(("machine", "wish", "clip", "cell"), CASES)
def test_a_machine_gets_the_plan_of_its_tier(machine, wish, clip, cell):
    load = workload(*clip, quality=wish)
    if cell == "X":
        with pytest.raises(InvalidInputError) as refused:
            plan_workload(load, simulate(machine))
        assert refused.value.exit_code == 2
        return
    chosen = plan_workload(load, simulate(machine)).components
    transformer, text_encoder = chosen["transformer"], chosen["text_encoder"]
    precision, placement = cell
    assert precision == "?" or transformer.precision == PRECISIONS[precision]
    expected = {
        "R": [("resident", "resident")],
        "E": [("resident", "staged")],
        "T": [("staged", "staged"), ("staged", "streamed")],
        "W": [(t, e) for t in ("resident", "staged") for e in ("resident", "staged", "streamed")],
        "S": [("streamed", e) for e in ("resident", "staged", "streamed")],
    }[placement]
    assert (transformer.placement, text_encoder.placement) in expected


@pytest.mark.parametrize(
    ("machine", "wish", "precision", "placement"),
    [
        ("1x40GB@8.0,ram=64", "auto", "bf16", "resident"),
        ("1x32GB@12.0,ram=64", "auto", "bf16", "staged"),
        ("1x24GB@8.9,ram=64", "auto", "fp8_compute", "staged"),
        ("1x16GB@8.9,ram=64", "auto", "fp8_compute", "streamed"),
        ("1x6GB@8.9,ram=64", "auto", "fp8_compute", "streamed"),
        ("1x6GB@8.9,ram=64", "exact", "bf16", "streamed"),
    ],
)
def test_a_first_frame_fits_where_its_clip_fits(machine, wish, precision, placement):
    """Its tokens are modulated apart, which takes two more rows of modulation and no tensor of tokens."""
    load = workload("960x960_10s", (960, 960), quality=wish, first_frame="image")
    transformer = plan_workload(load, simulate(machine)).components["transformer"]
    assert (transformer.precision, transformer.placement) == (precision, placement)


def test_the_table_is_large_enough():
    assert len(CASES) + len(rows(NANO)) >= 200


@pytest.mark.parametrize(("machine", "wish", "precision", "device"), rows(NANO))
def test_nano_runs_everywhere(machine, wish, precision, device):
    chosen = plan_workload(workload("nano", (96, 96), quality=wish), simulate(machine))
    assert chosen.device == device
    assert chosen.components["transformer"].precision == precision
    assert {component.placement for component in chosen.components.values()} == {"resident"} or wish == "smallest"


# --- Properties -------------------------------------------------------------------------------------------

WISHES = ("auto", "exact", "fast", "smallest")
CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "12.0")
machines = st.builds(
    lambda gb, free, capability, ram, disk: (gb, min(gb, free), capability, ram, disk),
    st.integers(2, 100), st.integers(1, 100), st.sampled_from(CAPABILITIES), st.integers(4, 200),
    st.sampled_from(("hdd", "ssd", "nvme")),
)  # fmt: skip
workloads = st.builds(
    lambda clip, wish, modality, passes, frame: workload(
        *clip, quality=wish, modality=modality, passes=passes, first_frame="none" if modality == "audio" else frame
    ),
    st.sampled_from((*CLIPS, ("nano", (96, 96)), ("720x720_5s", (992, 512)))),
    st.sampled_from(WISHES),
    st.sampled_from(("both", "both", "video", "audio")),
    st.sampled_from((1, 2)),
    st.sampled_from(("none", "none", "image")),
)


def build(machine):
    gb, free, capability, ram, disk = machine
    return simulate(f"1x{gb}GB@{capability},free={free},ram={ram},disk={disk}")


def plan_or_none(load, hardware):
    try:
        return plan_workload(load, hardware)
    except InvalidInputError:
        return None


@settings(max_examples=60, deadline=None)
@given(machines, workloads)
def test_a_plan_never_takes_more_than_is_free(machine, load):
    hardware = build(machine)
    made = plan_or_none(load, hardware)
    if made is not None:
        assert made.peak_gpu_bytes <= hardware.cards[0].free_bytes - memory.CUDA_CONTEXT_BYTES
        assert made.peak_host_bytes <= hardware.free_ram_bytes - memory.HOST_RESERVE_BYTES
        assert ExecutionPlan.from_json(json.loads(json.dumps(made.to_json()))) == made


@settings(max_examples=60, deadline=None)
@given(machines, workloads, st.integers(0, 60), st.integers(0, 100))
def test_a_larger_machine_never_refuses_and_is_never_slower(machine, load, more_gpu, more_ram):
    gb, free, capability, ram, disk = machine
    small = plan_or_none(load, build(machine))
    large = plan_or_none(load, build((gb + more_gpu, free + more_gpu, capability, ram + more_ram, disk)))
    if small is None:
        return
    assert large is not None
    finer = {"bf16", "float32"}
    steps_up = (
        load.quality == "auto"
        and large.components["transformer"].precision in finer
        and small.components["transformer"].precision not in finer
    )
    assert steps_up or large.seconds <= small.seconds * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(machines, workloads)
def test_what_a_refusal_asks_for_is_enough(machine, load):
    hardware = build(machine)
    try:
        plan_workload(load, hardware)
    except InvalidInputError as error:
        if "free on the card" not in error.problem:
            return
        needed = float(error.problem.split(" needs ")[1].split(" GB")[0])
        enough = f"1x200GB@{machine[2]},free={needed:.3f},ram=200,disk=nvme"
        assert plan_workload(load, simulate(enough))


# --- What is forced ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forced", "check"),
    [
        ({"transformer_precision": "int8"}, lambda p: p.components["transformer"].precision == "int8"),
        ({"transformer_placement": "streamed"}, lambda p: p.components["transformer"].placement == "streamed"),
        ({"text_encoder_precision": "nf4"}, lambda p: p.components["text_encoder"].precision == "nf4"),
        ({"text_encoder_placement": "streamed"}, lambda p: p.components["text_encoder"].placement == "streamed"),
        ({"attention_backend": "native"}, lambda p: p.attention_backend == "native"),
        ({"vae_tiling": "tiled"}, lambda p: p.vae_tiling == "tiled"),
        ({"text_cache": False}, lambda p: not p.text_cache),
        ({"batched_guidance": False}, lambda p: p.guidance == "sequential"),
        ({"compile": True}, lambda p: p.compile),
        ({"compile": False}, lambda p: not p.compile),
        ({"step_cache": "first_block"}, lambda p: p.step_cache == "first_block"),
        ({"gpu_limit_bytes": 20 * GB}, lambda p: p.peak_gpu_bytes < 20 * GB),
    ],
)
def test_any_part_can_be_forced(forced, check):
    made = plan_workload(workload(), simulate("1x80GB@9.0,ram=128"), Preferences(**forced))
    assert check(made)
    assert any(next(iter(forced)) in reason for reason in made.reasons)


@pytest.mark.parametrize(
    ("machine", "forced"),
    [
        ("1x24GB@8.6,ram=64", {"transformer_precision": "fp8_compute"}),
        ("1x24GB@8.9,ram=64,kernels=none", {"transformer_precision": "int8"}),
        ("1x24GB@8.9,ram=64,kernels=none", {"text_encoder_precision": "nf4"}),
        ("1x24GB@8.9,ram=64,kernels=none", {"attention_backend": "flash"}),
        ("1x24GB@8.9,ram=64", {"transformer_precision": "fp8_storage", "compile": True}),
        ("1x24GB@8.9,ram=64", {"transformer_precision": "bf16", "transformer_placement": "resident"}),
        ("1x80GB@9.0,ram=64", {"gpu_limit_bytes": 3 * GB}),
    ],
)
def test_an_impossible_wish_says_what_would_be_needed(machine, forced):
    with pytest.raises(InvalidInputError) as refused:
        plan_workload(workload(), simulate(machine), Preferences(**forced))
    assert refused.value.remedy


def test_forced_parts_also_hold_on_a_cpu():
    with pytest.raises(InvalidInputError, match="needs one"):
        plan_workload(workload("nano", (96, 96)), simulate("cpu,ram=16"), Preferences(transformer_precision="int8"))


# --- Details ----------------------------------------------------------------------------------------------


def test_little_ram_sends_streamed_bf16_to_disk_or_to_8_bit():
    exact = plan_workload(workload(quality="exact"), simulate("1x24GB@8.9,ram=16"))
    assert exact.components["transformer"].home == "disk"
    auto = plan_workload(workload(), simulate("1x24GB@8.9,ram=16"))
    assert auto.components["transformer"].precision == "fp8_compute"


def test_exact_at_24_gb_keeps_most_blocks_on_the_card():
    transformer = plan_workload(workload(quality="exact"), simulate("1x24GB@8.9,ram=64")).components["transformer"]
    assert 15 <= transformer.resident_blocks < transformer.blocks == 30


def test_a_request_and_its_workload():
    request = GenerationRequest.create(prompt="a", variant="960x960_10s", size=(704, 1280), quality="exact")
    load = Workload.of(request, get_variant(request.variant))
    assert (load.steps, load.passes, load.first_frame, load.quality) == (50, 2, "none", "exact")
    assert load.size == get_variant("960x960_10s").snap_size(704, 1280)
    silent = request.replace(modality="video", video_guidance_scale=1.0)
    assert Workload.of(silent, get_variant(request.variant)).passes == 1
    part = request.replace(video_guidance_interval=(0.0, 0.5), audio_guidance_interval=(0.25, 0.75))
    assert Workload.of(part, get_variant(request.variant)).guided == pytest.approx(0.75, abs=0.02)
    never = request.replace(video_guidance_interval=(0.0, 0.0), audio_guidance_interval=(1.0, 1.0))
    assert Workload.of(never, get_variant(request.variant)).passes == 1
    made = plan(request, get_variant(request.variant), simulate("1x80GB@9.0,ram=64"))
    assert made.variant == "960x960_10s"


def test_guidance_in_half_of_the_steps_takes_three_quarters():
    machine = simulate("1x80GB@9.0,ram=64")
    whole, half, none = (
        plan_workload(workload(guided=guided, passes=passes), machine, Preferences(compile=False))
        .stages["denoise"]
        .seconds
        for guided, passes in ((1.0, 2), (0.5, 2), (0.0, 1))
    )
    assert none < half < whole
    assert half == pytest.approx((none + whole) / 2, rel=0.02)


@pytest.mark.parametrize("quality", WISHES)
def test_steps_reuse_work_only_where_asked_or_only_speed_is_wished(quality):
    machine = simulate("1x80GB@9.0,ram=64")
    plain = plan_workload(workload(quality=quality), machine, Preferences(step_cache="none"))
    asked = plan_workload(
        workload(quality=quality), machine, Preferences(step_cache="first_block", step_cache_threshold=0.2)
    )
    assert (plain.step_cache, asked.step_cache, asked.step_cache_threshold) == ("none", "first_block", 0.2)
    assert not any("reuse" in reason for reason in plain.reasons)
    assert any("less than 20% reuse" in reason for reason in asked.reasons)
    assert asked.stages["denoise"].peak_gpu_bytes > plain.stages["denoise"].peak_gpu_bytes or quality == "smallest"
    left = plan_workload(workload(quality=quality), machine)
    assert left.step_cache == ("first_block" if quality == "fast" else "none")


def test_fast_takes_the_step_cache_at_nanos_price_and_says_it():
    machine = simulate("1x80GB@9.0,ram=64")
    fast = plan_workload(workload(quality="fast"), machine)
    plain = plan_workload(workload(quality="fast"), machine, Preferences(step_cache="none"))
    assert fast.step_cache_threshold == 0.1
    assert fast.stages["denoise"].seconds < plain.stages["denoise"].seconds
    reason = next(reason for reason in fast.reasons if "reuse" in reason)
    assert f"{costs.MEASURED['cache below 0.1'].psnr:.0f} dB" in reason
    never = plan_workload(workload(quality="fast"), machine, Preferences(step_cache_threshold=0.05))
    assert never.step_cache == "none", "so low it gains nothing"


def test_a_fast_plan_names_every_approximation():
    small = plan_workload(workload(quality="fast"), simulate("1x24GB@8.9,ram=64"))
    assert small.components["text_encoder"].precision == "nf4"
    told = " ".join(small.reasons)
    assert "The text encoder runs as nf4 weights: approximate" in told
    assert "The transformer runs as fp8" in told


def test_what_is_compiled_for_many_clips_is_not_charged_to_one():
    card = simulate("1x141GB@9.0,ram=128")
    for quality, precision in (("exact", "bf16"), ("auto", "bf16"), ("fast", "fp8_compute")):
        chosen = plan_workload(workload(quality=quality), card)
        assert (chosen.compile, chosen.components["transformer"].precision) == (True, precision)
    assert not plan_workload(workload(quality="exact", steps=6), card).compile


def test_few_steps_have_nothing_to_reuse_and_say_what_they_cost():
    few = plan_workload(workload(quality="fast", steps=20), simulate("1x80GB@9.0,ram=64"))
    assert few.step_cache == "none"
    assert any(reason.startswith("20 steps where 50 are usual") for reason in few.reasons)
    distilled = plan_workload(workload(quality="fast", steps=4, adapters=1), simulate("1x80GB@9.0,ram=64"))
    assert not any("are usual" in reason for reason in distilled.reasons)


def test_cards_that_share_a_clip_reuse_nothing():
    team = plan_workload(workload(quality="fast"), simulate("8x80GB@9.0,ram=256,link=nvlink"))
    assert (team.parallel.gpus, team.step_cache) == (8, "none")


def test_a_cpu_tells_of_approximations_too():
    told = plan_workload(workload("nano", (96, 96), quality="fast", steps=30), simulate("cpu,ram=8"))
    assert told.step_cache == "first_block"
    assert any("reuse" in reason for reason in told.reasons)


def test_stages_and_json_have_the_promised_names():
    data = plan_workload(workload(first_frame="image"), simulate("1x24GB@8.9,ram=64")).to_json()
    assert set(data["stages"]) == {"load", "encode text", "first frame", "denoise", "decode", "mux"}
    assert set(data["components"]) == {"transformer", "text_encoder", "video_vae", "audio_vae", "vocoder"}
    assert {"precision", "placement"} <= set(data["components"]["transformer"])
    for stage in data["stages"].values():
        assert set(stage) == {"peak_gpu_bytes", "peak_host_bytes", "seconds"}
    assert {"peak_gpu_bytes", "peak_host_bytes", "seconds", "parallel", "reasons", "rejected"} <= set(data)
    assert data["seconds"] == pytest.approx(sum(stage["seconds"] for stage in data["stages"].values()))


@pytest.mark.parametrize("data", [None, [], {}, {"variant": 3}, {"stages": {}}])
def test_foreign_data_is_no_plan(data):
    with pytest.raises(InvalidInputError):
        ExecutionPlan.from_json(data)


def test_unused_components_are_left_out():
    machine = simulate("1x24GB@8.9,ram=64")
    assert "video_vae" not in plan_workload(workload(modality="audio"), machine).components
    assert "vocoder" not in plan_workload(workload(modality="video"), machine).components


def test_drawing_a_first_frame_comes_first_and_changes_nothing_of_the_rest():
    for machine in map(simulate, ("1x80GB@9.0,ram=128", "1x24GB@8.9,ram=64", "1x8GB@8.9,ram=32")):
        drawn = plan_workload(workload(first_frame="generated"), machine)
        given = plan_workload(workload(first_frame="image"), machine)
        assert next(iter(drawn.stages)) == "draw frame"
        assert {name: stage for name, stage in drawn.stages.items() if name != "draw frame"} == given.stages
        assert {n: c for n, c in drawn.components.items() if not n.startswith("flux")} == given.components


@pytest.mark.parametrize(
    ("machine", "wish", "text_encoder", "transformer"),
    [
        ("1x80GB@9.0,ram=128", "auto", ("bf16", "staged"), ("bf16", "staged")),
        ("1x24GB@8.9,ram=64", "auto", ("bf16", "staged"), ("int8", "staged")),
        ("1x24GB@8.9,ram=64", "exact", ("bf16", "staged"), ("bf16", "streamed")),
        ("1x24GB@8.9,ram=64,kernels=none", "auto", ("bf16", "staged"), ("bf16", "streamed")),
        ("1x8GB@8.9,ram=16", "auto", ("bf16", "streamed"), ("nf4", "staged")),
        ("1x6GB@8.9,ram=64", "auto", ("bf16", "streamed"), ("bf16", "streamed")),
    ],
)
def test_how_a_first_frame_is_drawn(machine, wish, text_encoder, transformer):
    made = plan_workload(workload(first_frame="generated", quality=wish), simulate(machine))
    parts = [made.components[name] for name in ("flux_text_encoder", "flux_transformer")]
    assert [(part.precision, part.placement) for part in parts] == [text_encoder, transformer]
    assert made.stages["draw frame"].peak_gpu_bytes <= made.gpu_budget_bytes
    assert 5 < made.stages["draw frame"].seconds < 120


def test_drawing_streams_from_disk_where_ram_is_short():
    made = plan_workload(workload(first_frame="generated"), simulate("1x6GB@8.9,ram=24"))
    assert made.components["flux_transformer"].home == "disk"
    assert made.stages["draw frame"].peak_host_bytes < 24 * GB


@pytest.mark.parametrize("wish", WISHES)
def test_where_flux_cannot_draw_an_image_is_advised(wish):
    nano = workload("nano", (96, 96), first_frame="generated", quality=wish)
    assert plan_workload(nano, simulate("1x4GB@8.9,ram=32")).stages["draw frame"].seconds > 1
    with pytest.raises(InvalidInputError, match=r"FLUX.1 needs [23]\.\d GB free on the card.*Give an image"):
        plan_workload(nano, simulate("1x4GB@8.9,ram=32,free=2"))
    with pytest.raises(InvalidInputError, match=r"hours.*Give an image"):
        plan_workload(nano, simulate("cpu,ram=64"))


def test_a_tiny_image_model_draws_on_a_cpu():
    tiny = ImageModel(num_layers=2, num_single_layers=3, num_attention_heads=4, attention_head_dim=16, in_channels=16)
    made = plan_workload(workload("nano", (96, 96), first_frame="generated", image_model=tiny), simulate("cpu,ram=48"))
    assert made.components["flux_transformer"].precision == "float32"


def test_the_ladder_of_drawing():
    request = GenerationRequest.create(prompt="a", variant="720x720_5s", first_frame={"kind": "generated"}).resolved()
    variant, machine = get_variant("720x720_5s"), simulate("1x80GB@9.0,ram=64")
    rung = plan(request, variant, machine)
    ways = []
    for _ in range(20):
        part = rung.components["flux_transformer"]
        ways.append((part.precision, part.placement))
        try:
            lower = step_down(rung, "draw frame", request, variant, machine)
        except OutOfMemoryError:
            break
        assert lower.stages["draw frame"].peak_gpu_bytes <= 0.9 * rung.stages["draw frame"].peak_gpu_bytes
        rung = lower
    assert ways[0] == ("bf16", "staged")
    assert ("int8", "staged") in ways
    assert ways[-1] == ("bf16", "streamed")


def test_rejected_plans_are_told():
    made = plan_workload(workload(), simulate("1x24GB@8.6,ram=64"))
    text = "\n".join(made.explain())
    assert "compute capability 8.9" in text
    assert "bf16" in " ".join(made.rejected)
    assert "transformer" in text
    assert "GB" in text


def test_the_emptier_card_is_taken():
    machine = simulate("2x24GB@8.9,ram=64")
    full = replace(machine.cards[0], free_bytes=8 * GB)
    assert plan_workload(workload(), replace(machine, cards=(full, machine.cards[1]))).device == "cuda:1"


def test_torch_without_cuda_is_told():
    with pytest.raises(InvalidInputError, match="torch"):
        plan_workload(workload(), replace(simulate("1x24GB@8.9,ram=64"), torch_cuda=False))


# --- Stepping down ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["encode text", "denoise", "decode"])
@pytest.mark.parametrize("wish", WISHES)
def test_the_ladder_leads_down_and_ends(stage, wish):
    request = GenerationRequest.create(prompt="a", variant="720x720_5s", size=(704, 704), quality=wish)
    variant, machine = get_variant("720x720_5s"), simulate("1x48GB@8.9,ram=64")
    rung = plan(request, variant, machine)
    for _ in range(60):
        try:
            lower = step_down(rung, stage, request, variant, machine)
        except OutOfMemoryError:
            return
        assert lower.stages[stage].peak_gpu_bytes <= 0.9 * rung.stages[stage].peak_gpu_bytes
        rung = lower
    raise AssertionError("the ladder has no end")


# --- Bytes ------------------------------------------------------------------------------------------------


def test_the_wide_moments_are_those_of_the_recorded_model():
    """MODEL facts: about 5.4 GB at 704x704 and 10 GB at 960x960 for an untiled decode; 3.2 GB of cache at 704x1280."""
    shape = get_variant("720x720_5s").video_vae
    assert memory.feature_cache_bytes(shape, 44, 80, 2) == pytest.approx(3.2e9, rel=0.01)
    assert memory.decode_bytes(workload(), "none", 2) == pytest.approx(5.4e9, rel=0.01)
    large = workload("960x960_10s", (960, 960))
    assert memory.decode_bytes(large, "none", 2) == pytest.approx(10e9, rel=0.02)
    assert memory.text_cache_bytes(workload(), 2) == pytest.approx(755e6, rel=0.01)


def test_every_saving_saves():
    load = workload("960x960_10s", (960, 960))
    batched, sequential = (memory.denoise_activation_bytes(load, batch, 2) for batch in (2, 1))
    assert sequential < 0.55 * batched
    assert memory.denoise_activation_bytes(load, 1, 2, ffn_chunks=4) < sequential
    decodes = [memory.decode_bytes(load, tiling, 2) for tiling in ("none", "tiled", "tile_by_tile")]
    assert decodes == sorted(decodes, reverse=True)
    for variant in VARIANTS.values():
        whole = memory.weight_bytes(variant, "transformer", "int8")
        blocks = memory.transformer_blocks(variant, "int8")
        assert blocks.count * blocks.block + blocks.outside == pytest.approx(whole, rel=1e-6)


# --- Rates ------------------------------------------------------------------------------------------------


def test_more_cores_are_faster_and_rates_travel():
    machine = simulate("1x24GB@8.9,ram=64")
    small = replace(machine.cards[0], cuda_cores=3072, clock_mhz=2460)
    large = replace(machine.cards[0], cuda_cores=16384, clock_mhz=2520)
    slow, fast = (Rates.of(machine, card) for card in (small, large))
    assert slow.matmul < fast.matmul
    assert Rates.from_json(json.loads(json.dumps(fast.to_json()))) == fast
    seconds = [plan_workload(workload(), machine, rates=rates).seconds for rates in (slow, fast)]
    assert seconds[0] > seconds[1]


@pytest.mark.parametrize("data", [None, {}, {"matmul": "x"}, {**Rates(1, 1, 1, 1, 1, 1, 1, "x").to_json(), "disk": 0}])
def test_a_broken_calibration_is_refused(data):
    with pytest.raises(InvalidInputError):
        Rates.from_json(data)


# --- Words ------------------------------------------------------------------------------------------------


def words_of(machine, quality="auto", variant="720x720_5s", **forced):
    size = (96, 96) if variant == "nano" else (704, 704)
    plan = plan_workload(workload(variant, size, quality=quality), simulate(machine), Preferences(**forced))
    return " ".join(plan.reasons), " ".join(plan.rejected)


def test_what_would_fit_is_not_said_not_to_fit():
    """A part may be small because that was wished or forced; then memory is not to blame."""
    for reasons in (
        words_of("1x80GB@8.9,ram=64", "smallest")[0],
        words_of("1x80GB@8.9,ram=64", transformer_placement="streamed", text_encoder_placement="streamed")[0],
        words_of("1x80GB@8.9,ram=64", transformer_precision="int8", batched_guidance=False, vae_tiling="tiled")[0],
    ):
        assert "not fit" not in reasons
    assert "does not fit as a whole" in words_of("1x6GB@8.9,ram=64")[0]


def test_one_block_is_one_block():
    assert ": 1 block stays on the card" in words_of("1x4GB@8.9,ram=64")[0]
    assert "no block stays" in words_of("1x80GB@8.9,ram=64", "smallest")[0]


@pytest.mark.parametrize(("cards", "words"), [(2, "1 more card:"), (8, "7 more cards:")])
@pytest.mark.parametrize("quality", ["auto", "exact"])
def test_other_cards_are_told_of(cards, words, quality):
    assert words in words_of(f"{cards}x24GB@8.9,ram=64", quality, single_card=True)[1]
    assert "more card" not in words_of("1x24GB@8.9,ram=64", quality)[1]


def test_nf4_is_at_home_in_memory_and_moves_as_a_whole():
    """bitsandbytes' layers cannot lie in a mapped file, nor come one by one."""
    with pytest.raises(InvalidInputError, match="free RAM"):
        words_of("1x24GB@8.9,ram=7", text_encoder_precision="nf4", text_encoder_placement="staged")
    with pytest.raises(InvalidInputError, match="not possible"):
        words_of("1x24GB@8.9,ram=64", text_encoder_precision="nf4", text_encoder_placement="streamed")


def test_an_int8_text_encoder_may_be_streamed():
    forced = Preferences(text_encoder_precision="int8", text_encoder_placement="streamed")
    plan = plan_workload(workload(), simulate("1x6GB@8.9,ram=64"), forced)
    part = plan.components["text_encoder"]
    assert (part.precision, part.placement, part.blocks) == ("int8", "streamed", 24)


def test_cards_without_bf16_are_not_compiled_for():
    plan = plan_workload(workload(), simulate("1x24GB@7.5,ram=64"))
    assert not plan.compile


def test_a_small_model_that_runs_beside_a_full_card_says_so():
    reasons = words_of("1x24GB@8.9,ram=64,free=0.2", variant="nano")[0]
    assert "no card has room" in reasons
    assert "no usable card" in words_of("cpu,ram=16", variant="nano")[0]


def test_loading_holds_what_is_computed_and_writes_what_goes_to_disk():
    """Host memory of the stage "load", by hand: 3 GB, and the video VAE of 1.3 GB or a block of 0.7 and sound's 1.1."""
    staged, resident = (
        plan_workload(workload(), simulate(machine)) for machine in ("1x6GB@8.9,ram=7", "1x80GB@8.9,ram=8")
    )
    assert {part.home for part in staged.components.values()} == {"disk"}
    assert {part.home for part in resident.components.values()} == {"card"}
    assert staged.stages["load"].peak_host_bytes == pytest.approx(4.31 * GB, rel=0.02)
    assert resident.stages["load"].peak_host_bytes == pytest.approx(4.75 * GB, rel=0.02)
    assert staged.stages["load"].seconds > 1.5 * resident.stages["load"].seconds
