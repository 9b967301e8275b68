"""How much memory loading takes: a synthetic transformer checkpoint is written, loaded in a fresh process, deleted.

    python benchmarks/loading.py --gigabytes 2.5 --stored bfloat16
    python benchmarks/loading.py --gigabytes 2.5 --plan fp8_storage:streamed:disk [--adapter]

The last line is JSON: bytes of the file and of the loaded model, the highest resident memory while it was loaded
(beyond what the process had before), `overhead`, that peak over the model less one, and `times_floor`: seconds over
those of reading the file's bytes and no more, right before. Linux only: the kernel keeps the peak.

With a plan, the file is mapped and every weight brought to its place, as in a run. The peak is then that of the
process's own memory (mapped files are the system's to drop), sampled, and `predicted_bytes` is what the planner says
of the stage "load" beyond the process itself. With an adapter, every linear layer of the blocks has a LoRA.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import psutil
import torch
from safetensors.torch import save_file

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ovi_studio.model import components
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.runtime import memory
from ovi_studio.runtime.apply import AppliedPlan
from ovi_studio.runtime.execution_plan import ExecutionPlan, Home, Placement, Preferences
from ovi_studio.runtime.hardware import GB, private_bytes, simulate
from ovi_studio.runtime.memory import Precision, Workload
from ovi_studio.runtime.plan import plan_workload
from ovi_studio.variants import VARIANTS, Variant
from ovi_studio.weights import convert
from ovi_studio.weights.adapters import TOWERS, AdapterUse, AdapterWeights, LowRank, put_on
from ovi_studio.weights.load import IN_FILES, Destination, load_component
from ovi_studio.weights.nano import load_nano

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}
FORMATS = (*STORED, "pickle")
_FULL = VARIANTS["960x960_10s"]
_INTERVAL = 0.005  # seconds between two looks at the memory of the process: a block takes many


def main() -> int:
    """Writes, measures, deletes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.5, help="of the file, in 10^9 bytes (default: 2.5)")
    parser.add_argument("--stored", choices=FORMATS, default="bfloat16", help="how (default: bfloat16)")
    parser.add_argument("--plan", metavar="PRECISION:PLACEMENT:HOME", help="load by a plan, as fp8_storage:staged:host")
    parser.add_argument("--adapter", action="store_true", help="with a plan: put a LoRA on first")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the fresh process: this file
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    width = 4 if arguments.plan else 2  # a plan moves blocks, of which there should be many
    if arguments.measure:
        variant = _sized(arguments.layers, width)
        planned = arguments.plan and plan_of(variant, *arguments.plan.split(":"))
        path = arguments.measure
        print(json.dumps(measure_plan(path, planned, arguments.adapter) if planned else measure(path, variant)))
        return 0
    dtype = STORED.get(arguments.stored, torch.bfloat16)
    layers = _layers(arguments.gigabytes * 1e9 / dtype.itemsize, width)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = write(Path(folder), _sized(layers, width), dtype, pickled=arguments.stored == "pickle")
        print(f"{path.stat().st_size / 1e9:.2f} GB in {arguments.stored}, {layers} blocks", file=sys.stderr)
        command = [sys.executable, __file__, "--measure", str(path), "--layers", str(layers)]
        command += ["--plan", arguments.plan] if arguments.plan else []
        command += ["--adapter"] if arguments.adapter else []
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(json.dumps({"stored": arguments.stored, "plan": arguments.plan, **json.loads(answer.splitlines()[-1])}))
    return 0


def write(folder: Path, variant: Variant, dtype: torch.dtype, *, pickled: bool) -> Path:
    """A checkpoint under the published names, all of one value: what is measured does not depend on it."""
    with torch.device("meta"):
        shapes = convert.fusion_to_checkpoint(components.build_transformer(variant).state_dict())
    state = {name: torch.full(tensor.shape, 0.01).to(dtype) for name, tensor in shapes.items()}
    path = folder / ("model.pth" if pickled else "model.safetensors")
    if pickled:
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


def measure(path: Path, variant: Variant) -> dict[str, float]:
    """Loads the file here in bfloat16; bytes, and seconds."""
    with torch.device("meta"):
        components.build_transformer(variant)  # so that what is imported on the way counts as there before
    floor = _reading_seconds(path)
    process = psutil.Process()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before, start = process.memory_info().rss, time.monotonic()
    module = load_component("transformer", variant, [path], Destination("cpu", torch.bfloat16))
    seconds = time.monotonic() - start
    peak = _peak_resident() - before
    model = sum(tensor.nbytes for tensor in module.state_dict().values())
    return {
        "file_bytes": path.stat().st_size,
        "model_bytes": model,
        "peak_bytes": peak,
        "overhead": round(peak / model - 1, 4),
        "seconds": round(seconds, 2),
        "times_floor": round(seconds / floor, 2),
    }


def _reading_seconds(path: Path) -> float:
    """Of all bytes of a file, into memory that is used again."""
    buffer, start = bytearray(1 << 24), time.monotonic()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.monotonic() - start


def plan_of(variant: Variant, precision: Precision, placement: Placement, home: Home) -> tuple[Variant, ExecutionPlan]:
    """A plan of the planner's own, for a card, with this transformer among nano's other components.

    Raises:
        ValueError: the planner makes no such plan.
    """
    if precision not in get_args(Precision) or placement not in get_args(Placement) or home not in get_args(Home):
        raise ValueError(f"{precision}:{placement}:{home} is no precision, placement and home.")
    variant = dataclasses.replace(VARIANTS["nano"], transformer=variant.transformer)
    forced = Preferences(precision, transformer_placement=placement, attention_backend="native", compile=False)
    ram = memory.CUDA_PROCESS_BYTES + memory.HOST_RESERVE_BYTES
    ram += int((0.5 if home == "disk" else 2) * memory.weight_bytes(variant, "transformer", precision))
    machine = simulate(f"1x80GB@8.9,ram={ram / GB:.2f}")
    plan = plan_workload(Workload(variant, variant.default_size), machine, forced)
    if plan.components["transformer"].home != home:
        raise ValueError(f"The planner's home is {plan.components['transformer'].home}.")
    return variant, plan


def measure_plan(path: Path, planned: tuple[Variant, ExecutionPlan], adapter: bool) -> dict[str, object]:
    """Loads the file by the plan, but onto the CPU; bytes, and seconds."""
    variant, plan = planned
    parts = load_nano().components
    if plan.components["transformer"].precision in ("int8", "fp8_compute"):
        importlib.import_module("torchao.quantization")  # counts as the process, as all that is imported
    with torch.device("meta"):
        uses = [AdapterUse(lora_of(components.build_transformer(variant)))] if adapter else []
    if adapter:  # what PEFT imports for it counts as the process too
        put_on(parts["transformer"], [AdapterUse(lora_of(parts["transformer"]))])
    before, start = private_bytes(), time.monotonic()
    with _sampled() as peaks:
        parts["transformer"] = load_component("transformer", variant, [path], IN_FILES)
        put_on(parts["transformer"], uses)
        pipeline = OviPipeline(**parts, variant=variant.name)
        placed = AppliedPlan(pipeline, dataclasses.replace(plan, device="cpu"), path.parent)
    seconds, kept = time.monotonic() - start, private_bytes() - before
    placed.close()
    predicted = plan.stages["load"].peak_host_bytes - memory.CUDA_PROCESS_BYTES
    return {
        "transformer": plan.components["transformer"].describe(),
        "file_bytes": path.stat().st_size,
        "predicted_bytes": predicted,
        "peak_bytes": max(peaks) - before,
        "kept_bytes": kept,
        "seconds": round(seconds, 2),
    }


def lora_of(transformer: OviTransformer) -> AdapterWeights:
    """A LoRA of rank 1 on every linear layer of the blocks."""
    towers: dict[str, dict[str, LowRank]] = {tower: {} for tower in TOWERS}
    for name, layer in transformer.blocks.named_modules():
        if isinstance(layer, torch.nn.Linear):
            block, tower, rest = name.split(".", 2)
            down, up = torch.ones(1, layer.in_features, device="cpu"), torch.ones(layer.out_features, 1, device="cpu")
            towers[tower][f"blocks.{block}.{rest}"] = LowRank(1e-3 * down, 1e-3 * up, None)
    return AdapterWeights(Path("lora.safetensors"), {tower: towers[tower] for tower in TOWERS})


@contextlib.contextmanager
def _sampled() -> Iterator[list[int]]:
    """While this lasts, the process's own memory goes into the list, again and again."""
    samples, stop = [private_bytes()], threading.Event()

    def sample() -> None:
        while not stop.wait(_INTERVAL):
            samples.append(private_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        stop.set()
        sampler.join()


def _peak_resident() -> int:
    """The highest resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _sized(layers: int, width: int) -> Variant:
    """The released model with its width divided by `width`, and with so many blocks."""
    return dataclasses.replace(
        _FULL,
        transformer=dataclasses.replace(
            _FULL.transformer,
            num_attention_heads=_FULL.transformer.num_attention_heads // width,
            ffn_dim=_FULL.transformer.ffn_dim // width,
            num_layers=layers,
        ),
    )


def _layers(parameters: float, width: int) -> int:
    """The count of blocks at which the model comes nearest to so many parameters."""
    with torch.device("meta"):
        one, two = (
            sum(parameter.numel() for parameter in components.build_transformer(_sized(layers, width)).parameters())
            for layers in (1, 2)
        )
    return max(1, round((parameters - one) / (two - one)) + 1)


if __name__ == "__main__":
    sys.exit(main())
