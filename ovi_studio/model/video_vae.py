"""The Wan2.2 video VAE as the model uses it: scaled latents in, frames out as they are decoded.

The VAE is diffusers' own `AutoencoderKLWan`. What is added here is the scaling of its latents, which the class
leaves to its callers, and a decode that gives frames away one latent frame at a time: the causal decoder needs
only its feature cache of the past, so a clip never has to exist as a whole.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

# From the decoder's latents (B, C, F, H, W), for each latent frame the decoded tiles, row by row.
TileDecoder: TypeAlias = Callable[[AutoencoderKLWan, Tensor, "Tiling"], Iterator[list[list[Tensor]]]]


@apply_forward_hook  # type: ignore[untyped-decorator]
def encode_frames(vae: AutoencoderKLWan, frames_BCFHW: Tensor) -> Tensor:
    """Frames (B, 3, 4k+1, H, W) in -1…1 to normalized float32 latents (B, C, k+1, H/16, W/16), without sampling."""
    posterior = vae.encode(frames_BCFHW.to(vae.device, vae.dtype)).latent_dist
    mean, std = _latent_statistics(vae)
    normalized: Tensor = (posterior.mode().float() - mean) / std
    return normalized


@apply_forward_hook  # type: ignore[untyped-decorator]
def decode_frames(
    vae: AutoencoderKLWan, latents_BCFHW: Tensor, tile_by_tile: bool = False, tiles: TileDecoder | None = None
) -> Iterator[Tensor]:
    """Normalized latents to frames in -1…1: (B, 3, 1, H, W) for the first latent frame, then (B, 3, 4, H, W) each.

    Gives the same frames as `vae.decode`, whole or tiled (`vae.enable_tiling()`). The decorator brings an
    offloaded VAE to its device, as it does for `vae.decode`.

    Args:
        vae: the VAE.
        latents_BCFHW: normalized latents.
        tile_by_tile: whether each tile is decoded to its end before the next one. It needs one tile's feature
            cache instead of all tiles', and host memory for the tiles of the whole clip.
        tiles: decodes them in another way than these two.
    """
    mean, std = _latent_statistics(vae)
    latents = (latents_BCFHW.to(vae.device, torch.float32) * std + mean).to(vae.dtype)
    latents = vae.post_quant_conv(latents)
    tiling = Tiling.of(vae, latents.shape[-2], latents.shape[-1])
    decode = tiles or (_tile_by_tile if tile_by_tile else _frame_by_frame)
    for decoded in decode(vae, latents, tiling):
        yield _unpatchify(vae, tiling.join(vae, decoded)).clamp(-1.0, 1.0)


def _frame_by_frame(vae: AutoencoderKLWan, latents_BCFHW: Tensor, tiling: "Tiling") -> Iterator[list[list[Tensor]]]:
    """The tiles of each latent frame."""
    caches = [[FeatureCache(vae) for _ in tiling.columns] for _ in tiling.rows]
    for index in range(latents_BCFHW.shape[2]):
        latent = latents_BCFHW[:, :, index : index + 1]
        yield [
            [
                cache.decode(tiling.cut(latent, top, left), index == 0)
                for left, cache in zip(tiling.columns, row, strict=True)
            ]
            for top, row in zip(tiling.rows, caches, strict=True)
        ]


def _tile_by_tile(vae: AutoencoderKLWan, latents_BCFHW: Tensor, tiling: "Tiling") -> Iterator[list[list[Tensor]]]:
    """The same tiles. They wait in host memory until their neighbours are decoded."""
    waiting = [
        [_decode_tile(vae, tiling.cut(latents_BCFHW, top, left)) for left in tiling.columns] for top in tiling.rows
    ]
    for _ in range(latents_BCFHW.shape[2]):
        yield [[tile.popleft().to(latents_BCFHW.device) for tile in row] for row in waiting]


def _decode_tile(vae: AutoencoderKLWan, latents_BCFHW: Tensor) -> deque[Tensor]:
    cache = FeatureCache(vae)
    frames = latents_BCFHW.split(1, dim=2)
    return deque(cache.decode(frame, index == 0).cpu() for index, frame in enumerate(frames))


def _latent_statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=vae.device).view(shape)
    return mean, std


class FeatureCache:
    """What the causal decoder remembers of the past, of the whole picture or of one tile."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        vae.clear_cache()
        self._vae = vae
        self._features = vae._feat_map
        vae.clear_cache()

    def decode(self, latent_BC1HW: Tensor, first: bool) -> Tensor:
        """The next latent frame, before unpatchifying."""
        decoded: Tensor = self._vae.decoder(latent_BC1HW, feat_cache=self._features, feat_idx=[0], first_chunk=first)
        return decoded


@dataclass(frozen=True)
class Tiling:
    """Overlapping tiles, as `vae.tiled_decode` lays them; a single tile where the VAE does not tile.

    Args:
        rows: top edges of the tiles, in latents.
        columns: left edges of the tiles, in latents.
        height: of a tile, in latents.
        width: of a tile, in latents.
        stride: what a tile adds to the picture, (height, width) in decoder pixels (before unpatchifying).
        overlap: what is blended with the tile above and to the left, likewise.
        picture: the whole, likewise.
    """

    rows: range
    columns: range
    height: int
    width: int
    stride: tuple[int, int]
    overlap: tuple[int, int]
    picture: tuple[int, int]

    @staticmethod
    def of(vae: AutoencoderKLWan, height: int, width: int) -> "Tiling":
        """The tiling of a picture of this size, in latents, as the VAE is set."""
        ratio = vae.spatial_compression_ratio
        patch = vae.config.patch_size or 1
        picture = (height * ratio // patch, width * ratio // patch)
        tile_height, tile_width = vae.tile_sample_min_height // ratio, vae.tile_sample_min_width // ratio
        if not vae.use_tiling or (height <= tile_height and width <= tile_width):
            return Tiling(range(1), range(1), height, width, picture, (0, 0), picture)
        stride = (vae.tile_sample_stride_height // patch, vae.tile_sample_stride_width // patch)
        return Tiling(
            range(0, height, vae.tile_sample_stride_height // ratio),
            range(0, width, vae.tile_sample_stride_width // ratio),
            tile_height,
            tile_width,
            stride,
            (vae.tile_sample_min_height // patch - stride[0], vae.tile_sample_min_width // patch - stride[1]),
            picture,
        )

    def cut(self, latents_BCFHW: Tensor, top: int, left: int) -> Tensor:
        """The latents of the tile at (top, left)."""
        return latents_BCFHW[..., top : top + self.height, left : left + self.width]

    def join(self, vae: AutoencoderKLWan, tiles: list[list[Tensor]]) -> Tensor:
        """Blends the tiles' overlaps and puts them side by side."""
        picture_rows = []
        for i, row in enumerate(tiles):
            parts = []
            for j, tile in enumerate(row):
                blended = vae.blend_v(tiles[i - 1][j], tile, self.overlap[0]) if i > 0 else tile
                blended = vae.blend_h(row[j - 1], blended, self.overlap[1]) if j > 0 else blended
                parts.append(blended[..., : self.stride[0], : self.stride[1]])
            picture_rows.append(torch.cat(parts, dim=-1))
        return torch.cat(picture_rows, dim=-2)[..., : self.picture[0], : self.picture[1]]


def _unpatchify(vae: AutoencoderKLWan, frames: Tensor) -> Tensor:
    return frames if vae.config.patch_size is None else unpatchify(frames, patch_size=vae.config.patch_size)
