"""How much memory loading takes: a synthetic transformer checkpoint is written, loaded in a fresh process, deleted.

    python benchmarks/loading.py --gigabytes 2.5 --stored bfloat16

The last line is JSON: bytes of the file and of the loaded model, the highest resident memory while it was loaded
(beyond what the process had before), and `overhead`, that peak over the model less one. Linux only: the kernel keeps
the peak.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ovi_studio.model import components
from ovi_studio.variants import VARIANTS, Variant
from ovi_studio.weights import convert
from ovi_studio.weights.load import Destination, load_component

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}
FORMATS = (*STORED, "pickle")
_FULL = VARIANTS["960x960_10s"]


def main() -> int:
    """Writes, measures, deletes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.5, help="of the file, in 10^9 bytes (default: 2.5)")
    parser.add_argument("--stored", choices=FORMATS, default="bfloat16", help="how (default: bfloat16)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the fresh process: this file
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, _sized(arguments.layers))))
        return 0
    dtype = STORED.get(arguments.stored, torch.bfloat16)
    layers = _layers(arguments.gigabytes * 1e9 / dtype.itemsize)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = write(Path(folder), _sized(layers), dtype, pickled=arguments.stored == "pickle")
        print(f"{path.stat().st_size / 1e9:.2f} GB in {arguments.stored}, {layers} blocks", file=sys.stderr)
        command = [sys.executable, __file__, "--measure", str(path), "--layers", str(layers)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(json.dumps({"stored": arguments.stored, **json.loads(answer.splitlines()[-1])}))
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
    }


def _peak_resident() -> int:
    """The highest resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _sized(layers: int) -> Variant:
    """The released model at half its width, with so many blocks."""
    return dataclasses.replace(
        _FULL,
        transformer=dataclasses.replace(
            _FULL.transformer, num_attention_heads=12, ffn_dim=_FULL.transformer.ffn_dim // 2, num_layers=layers
        ),
    )


def _layers(parameters: float) -> int:
    """The count of blocks at which the model comes nearest to so many parameters."""
    with torch.device("meta"):
        one, two = (
            sum(parameter.numel() for parameter in components.build_transformer(_sized(layers)).parameters())
            for layers in (1, 2)
        )
    return max(1, round((parameters - one) / (two - one)) + 1)


if __name__ == "__main__":
    sys.exit(main())
