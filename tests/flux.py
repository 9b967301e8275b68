"""FLUX.1 at toy size with random weights, in a store as the catalog lays it out: drawn with in a second, on a CPU."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from ovi_studio.assets import data_path
from ovi_studio.weights.image_model import SOURCE
from ovi_studio.weights.store import FileRecord, ListedFile, Listing, Store, sha256_of

SIDE = 64  # pixels a side of its pictures


def tiny_flux(guidance_embeds: bool = True) -> FluxPipeline:
    """Random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        tokenizer_2 = AutoTokenizer.from_pretrained(data_path("assets", "nano", "tokenizer"), local_files_only=True)
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(4, 8, 8, 8),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=2,
                sample_size=SIDE,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    vocab_size=64,
                    max_position_embeddings=77,
                    projection_dim=16,
                    bos_token_id=62,
                    eos_token_id=63,
                    pad_token_id=63,
                )
            ),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=T5EncoderModel(
                T5Config(
                    vocab_size=len(tokenizer_2) + 8,
                    d_model=32,
                    d_kv=8,
                    d_ff=64,
                    num_layers=2,
                    num_heads=4,
                    feed_forward_proj="gated-gelu",
                )
            ),
            tokenizer_2=tokenizer_2,
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=4,
                joint_attention_dim=32,
                pooled_projection_dim=16,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 6, 6),
            ),
        )
    for part in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer, pipeline.vae):
        part.eval()  # as the libraries load them
    return pipeline


def put_in_store(pipeline: FluxPipeline, store: Store) -> Path:
    """The pipeline as a finished download; returns its folder."""
    folder = store.folder_of(SOURCE)
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        file = ListedFile(name, path.stat().st_size, sha256_of(path))
        store.write_record(SOURCE, FileRecord(SOURCE.repo, "1", name, file.size, file.sha256))
        files.append(file)
    store.write_listing(SOURCE, Listing(SOURCE.repo, "1", tuple(files)))
    return folder


def _clip_tokenizer() -> Any:
    letters = [f"{chr(97 + index)}</w>" for index in range(26)] + [chr(97 + index) for index in range(26)]
    names = [*letters, *".,!?'0123", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)} | {"<|startoftext|>": 62, "<|endoftext|>": 63}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


if __name__ == "__main__":  # python -m tests.flux FOLDER: for trying things by hand
    import sys

    print(json.dumps({"folder": str(put_in_store(tiny_flux(), Store(Path(sys.argv[1]))))}))  # noqa: T201
