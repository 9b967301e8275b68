"""This checkout against another commit, in one run: their transformer's guided steps, alternating.

    python benchmarks/against.py --commit 19b5931 --model nano --rounds 7

The other commit is checked out beside this one for the time of the run. Each has a process of its own, and only one
of them works at a time. Seconds are of the one thread that works. Weights and inputs are the same, and so must be
the latents, to 1e-5.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(ROOT))

# What both commits can run: the fused sampler, from the first that had it. It answers every line with a run.
WORKER = """
import json, sys, time, torch
from ovi_studio.model.sampler import FusedSampler, Guidance, TextStates, draw_noise
from ovi_studio.model.transformer import OviTransformer
torch.set_num_threads(1)
told = json.loads(sys.argv[1])
torch.manual_seed(0)
model = OviTransformer(**told["shape"]).eval()
draw = torch.Generator().manual_seed(0)
text = TextStates(*(torch.randn(1, told["text_len"], told["shape"]["text_dim"], generator=draw) for _ in range(3)))
state = torch.Generator().manual_seed(1)
noise = draw_noise(tuple(told["video"]), tuple(told["audio"]), (state, state))
def run():
    sampler = FusedSampler(model, text, Guidance(4.0, 3.0, 1), "unipc", 5.0, told["steps"])
    start = time.thread_time()
    latents = sampler.begin(noise)
    for index in range(told["steps"]):
        latents = sampler.step(latents, index)
    return time.thread_time() - start, latents
with torch.no_grad():
    for line in sys.stdin:
        seconds, latents = run()
        torch.save((latents.video, latents.audio), told["out"])
        print(json.dumps(seconds), flush=True)
"""


def main() -> None:
    """Checks the other commit out, runs both in turn, and removes it."""
    from benchmarks.common import finish, medians, size_of, variant_of  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--commit", required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--size", metavar="HxW")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    variant = variant_of(options.model)
    size = size_of(variant, options.size)
    told = {
        "shape": variant.transformer.config(),
        "text_len": variant.text_len,
        "video": (variant.transformer.in_channels, *variant.latent_grid(*size)),
        "audio": (variant.audio_latents, variant.transformer.audio_in_channels),
        "steps": options.steps,
    }
    with tempfile.TemporaryDirectory() as name:
        other = Path(name) / "other"
        git("worktree", "add", "--detach", str(other), options.commit)
        try:
            took, error = measure({options.commit: other, "this": ROOT}, told, options.rounds, Path(name))
        finally:
            git("worktree", "remove", "--force", str(other))
    seconds = medians(took)
    gain = seconds[options.commit] / seconds["this"]
    print(f"{variant.name} at {size}, {options.steps} steps: {gain:.2f} times as fast, latents within {error:.1e}")
    result = {"benchmark": "against", "model": variant.name, "commit": options.commit, "seconds": took, "gain": gain}
    finish({**result, "latents_apart": error}, "cpu")


def measure(
    checkouts: dict[str, Path], told: dict[str, Any], rounds: int, folder: Path
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each, the first round left out, and the largest relative L2 between their latents."""
    files = [folder / f"{index}.pt" for index in range(len(checkouts))]
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps({**told, "out": str(file)})],
            cwd=path,
            env={"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "PATH": ""},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for (name, path), file in zip(checkouts.items(), files, strict=True)
    }
    took: dict[str, list[float]] = {name: [] for name in checkouts}
    for _ in range(rounds + 1):
        for name, worker in workers.items():
            if worker.stdin is None or worker.stdout is None:
                raise RuntimeError("no pipes")
            worker.stdin.write("run\n")
            worker.stdin.flush()
            took[name].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    one, two = (torch.load(file) for file in files)
    return {name: seconds[1:] for name, seconds in took.items()}, max(
        float((a - b).norm() / b.norm()) for a, b in zip(one, two, strict=True)
    )


def git(*arguments: str) -> None:
    """In this checkout."""
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)


if __name__ == "__main__":
    main()
