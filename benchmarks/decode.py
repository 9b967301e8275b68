"""The video VAE: decoding alone, encoding to mp4 beside it or after every chunk, another memory layout, compiled norms.

python benchmarks/decode.py                                   # nano on a CPU
python benchmarks/decode.py --model 720x720_5s --size 704x704 --device cuda
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import alternating, arguments, believed_rates, finish, medians, pipeline_of, size_of, variant_of
from ovi_studio.arithmetic import stage_work
from ovi_studio.engine.feeder import FrameFeeder
from ovi_studio.media import clip_writer
from ovi_studio.model.pipeline import OviPipeline, frames_to_uint8
from ovi_studio.runtime.measure import convolution_rate
from ovi_studio.variants import Size


@torch.no_grad()
def main() -> None:
    """Measures all of them in turn."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also with norms and activations compiled, at the end")
    options = parser.parse_args()
    variant = variant_of(options.model)
    size = size_of(variant, options.size)
    pipeline = pipeline_of(variant, options.device)
    pipeline.video_vae.to(options.device)
    shape = (1, variant.transformer.in_channels, *variant.latent_grid(*size))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        works: dict[str, Callable[[], None]] = {
            "decode": lambda: decode(pipeline, latents),
            "decode, then encode each chunk": lambda: decode_into(pipeline, latents, size, Path(folder), beside=False),
            "encode beside the decoding": lambda: decode_into(pipeline, latents, size, Path(folder), beside=True),
            "decode, channels last": lambda: in_layout(pipeline, latents, torch.channels_last_3d),
        }
        for work in works.values():
            work()
        took = medians(alternating(works, options.rounds, options.device, wall=True))
    if options.compile:
        compile_norms(pipeline)
        decode(pipeline, latents)
        took |= medians(
            alternating({"decode, norms compiled": works["decode"]}, options.rounds, options.device, wall=True)
        )
    rate = convolution_rate(torch.device(options.device)) or believed_rates().convolution
    floor = stage_work(variant, size)["decode_video"].operations / rate / 1e12
    for name, seconds in took.items():
        print(
            f"{name:<34}{seconds:>9.3f} s, {seconds / floor:.2f} x the floor, {seconds / took['decode']:.2f} x decode"
        )
    finish(
        {"benchmark": "decode", "model": variant.name, "size": str(size), "floor": floor, "seconds": took},
        options.device,
    )


def decode(pipeline: OviPipeline, latents: torch.Tensor) -> None:
    """All frames, as the encoder wants them."""
    for frames in pipeline.decode_video(latents):
        frames_to_uint8(frames)


def decode_into(pipeline: OviPipeline, latents: torch.Tensor, size: Size, folder: Path, *, beside: bool) -> None:
    """All frames into a file."""
    variant = pipeline.variant
    with clip_writer(
        folder / "clip.mp4", size=size, waveform=None, fps=variant.fps, sample_rate=variant.sample_rate, metadata={}
    ) as encoder:
        if beside:
            with FrameFeeder(encoder) as feeder:
                for frames in pipeline.decode_video(latents):
                    feeder.add(frames_to_uint8(frames))
            return
        for frames in pipeline.decode_video(latents):
            for frame in frames_to_uint8(frames):
                encoder.add_frame(frame)


def in_layout(pipeline: OviPipeline, latents: torch.Tensor, layout: torch.memory_format) -> None:
    """Decoding with the VAE's weights in another memory layout."""
    convolutions = [module for module in pipeline.video_vae.modules() if isinstance(module, torch.nn.Conv3d)]
    try:
        for module in convolutions:
            module.weight.data = module.weight.data.to(memory_format=layout)
        decode(pipeline, latents)
    finally:
        for module in convolutions:
            module.weight.data = module.weight.data.contiguous()


def compile_norms(pipeline: OviPipeline) -> None:
    """Norm and activation as one kernel: the residual blocks as a whole would be a graph for each of their caches."""
    for block in pipeline.video_vae.modules():
        if isinstance(block, WanResidualBlock):
            for name in ("norm1", "norm2"):
                fused = torch.nn.Sequential(getattr(block, name), block.nonlinearity)
                fused.compile(dynamic=True)
                setattr(block, name, fused)
            block.nonlinearity = torch.nn.Identity()


if __name__ == "__main__":
    main()
