"""The recipe's last stage on any model: `python -m ovi_studio.training finetune --model NAME --data DIR --out DIR`.

    released (or packed) weights + latents that `prepare` made → an adapter, or with --full a whole transformer

A low-rank adapter (LoRA, by PEFT) is what one card can train at full size. The same losses, timesteps, given first
frames and left-out captions as in `flow.py`; the same loop, so it goes on after a kill and divides over processes.
What comes out is read by `weights/adapters.py`: import it, and name it in a request.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor

from ovi_studio.errors import WeightsError
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.training.data import load_for_training
from ovi_studio.training.flow import BETAS, FlowStage, Streams, Texts
from ovi_studio.training.latents import LatentSet
from ovi_studio.training.loop import Settings, train
from ovi_studio.variants import VARIANTS, get_variant
from ovi_studio.weights.float8 import has_float8

Targets: TypeAlias = Literal["attention", "all"]

ADAPTER_FILE = "adapter.safetensors"
_ATTENTION = r"(self_attn|cross_attn)\.(q|k|v|o|k_fusion|v_fusion)"
_FEED_FORWARD = r"ffn\.(0|2)"


@dataclass(frozen=True)
class LowRank:
    """An adapter.

    Args:
        rank: of each layer's change.
        targets: "attention" leaves the feed-forward layers out, as the paper's fusion stage does.
    """

    rank: int = 32
    targets: Targets = "attention"

    def config(self, streams: Streams) -> LoraConfig:
        """For PEFT. The scale is 1, so that the adapter's file needs none."""
        tower = "(video|audio)" if streams == "both" else streams
        layers = _ATTENTION if self.targets == "attention" else f"({_ATTENTION}|{_FEED_FORWARD})"
        return LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=rf"blocks\.\d+\.{tower}\.{layers}")


class FinetuneStage(FlowStage):
    """`FlowStage` on weights that were trained before, in whatever type they are in.

    Args:
        transformer: with its weights.
        texts: its text encoder.
        latents: that train.
        test_latents: that measure.
        streams: which towers run, and learn.
        low_rank: what is trained; None for all that the fusion stage trains.
        steps: of the whole training.
        batch_size: clips of a step.
        seed: as in `FlowStage`.

    Raises:
        WeightsError: the weights are kept in float8, whose steps are too coarse to learn in.
    """

    def __init__(
        self,
        transformer: OviTransformer,
        texts: Texts,
        latents: LatentSet,
        test_latents: LatentSet,
        streams: Streams,
        low_rank: LowRank | None,
        steps: int,
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        if has_float8(transformer):
            raise WeightsError("These weights are kept in float8.", "Fine-tune the bfloat16 ones: `models show`.")
        super().__init__(transformer, texts, latents, test_latents, streams, steps, batch_size, seed)
        self._low_rank = low_rank
        self._dtype = transformer.dtype
        if low_rank is not None:
            transformer.requires_grad_(False)
            transformer.add_adapter(low_rank.config(streams))
        cast_training_params(transformer, torch.float32)  # what is learned is smaller than bfloat16's steps
        transformer.enable_gradient_checkpointing()

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """See `FlowStage.forward`; products are computed in the weights' own type."""
        device = self.transformer.device.type
        with torch.autocast(device, self._dtype, enabled=self._dtype != torch.float32):
            losses: dict[str, Tensor] = super().forward(**batch)
        return losses

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is trained: checkpoints need not hold the rest, which is on the disk already."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: x for name, x in super().state_dict(*args, **kwargs).items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], *_args: Any, **_kwargs: Any) -> Any:
        """Puts back what `state_dict` gave."""
        return super().load_state_dict(state_dict, strict=False)

    def save(self, folder: Path) -> None:
        """The adapter as one file, or the whole transformer."""
        if self._low_rank is None:
            self.transformer.save_pretrained(folder)
        else:
            self.transformer.save_lora_adapter(folder, weight_name=ADAPTER_FILE)


def main(argv: Sequence[str]) -> int:
    """Fine-tunes a model."""
    usual = LowRank()
    parser = argparse.ArgumentParser(
        prog="python -m ovi_studio.training finetune",
        description="Fine-tune a model on latents that `prepare` made. The same command goes on after an interruption.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="nano", metavar="NAME", help=f"{', '.join(VARIANTS)} (default: nano)")
    add("--data", type=Path, required=True, metavar="DIR", help="with train, and test if there is one")
    add("--out", type=Path, required=True, metavar="DIR", help=f"checkpoint, curves and weights/{ADAPTER_FILE}")
    add("--steps", type=int, default=2000, metavar="N", help="default: 2000")
    add("--batch-size", type=int, default=1, metavar="N", help="clips of a step, over all processes (default: 1)")
    add("--learning-rate", type=float, default=1e-4, metavar="X", help="default: 1e-4")
    add("--rank", type=int, default=usual.rank, metavar="N", help=f"of the adapter (default: {usual.rank})")
    add("--targets", choices=get_args(Targets), default=usual.targets, help=f"layers (default: {usual.targets})")
    add("--streams", choices=get_args(Streams), default="both", help="towers that run and learn (default: both)")
    add("--full", action="store_true", help="train the transformer itself, as the fusion stage does, and no adapter")
    add("--seed", type=int, default=0, metavar="S", help="of noise, order and fresh weights (default: 0)")
    arguments = parser.parse_args(argv)

    variant = get_variant(arguments.model)
    latents, test_latents = _sets(arguments.data)
    pipeline = load_for_training(variant)
    torch.manual_seed(arguments.seed)
    stage = FinetuneStage(
        pipeline.transformer,
        Texts(pipeline.text_encoder, pipeline.tokenizer, variant),
        latents,
        test_latents,
        arguments.streams,
        None if arguments.full else LowRank(arguments.rank, arguments.targets),
        arguments.steps,
        arguments.batch_size,
        arguments.seed,
    )
    settings = Settings(arguments.steps, arguments.learning_rate, betas=BETAS, cooldown=0.1, save_seconds=600)
    train(stage.train(), settings, arguments.out)
    return 0


def _sets(folder: Path) -> tuple[LatentSet, LatentSet]:
    """What trains, and what measures: of a few films, which may all have fallen to training, the same."""
    training = LatentSet.load(folder / "train")
    return training, LatentSet.load(folder / "test") if (folder / "test").is_dir() else training
