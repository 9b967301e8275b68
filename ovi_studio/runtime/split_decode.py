"""The picture decoded by all cards of a run: each has some tiles of every latent frame, and rank 0 joins them.

Tiles are those of one card's tiled decode, so that the frames are the same. A frame is decoded when rank 0 asks for it;
a clip that is given up asks for no more.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ovi_studio.model.video_vae import FeatureCache, Tiling
from ovi_studio.runtime.parallel import Like, Member
from ovi_studio.runtime.teams import assigned

Tile: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class BeginDecode:
    """Get ready to decode; the decoder's latents follow."""

    latents: Like


@dataclass(frozen=True)
class DecodeFrame:
    """Decode this latent frame's tiles, and send them."""

    index: int


DecodeOrder: TypeAlias = BeginDecode | DecodeFrame


class SplitDecode:
    """Rank 0's way to decode: a `TileDecoder`.

    Args:
        member: this rank.
        send: and the rest: as in `Team`.
        at_work: see above.
    """

    def __init__(
        self,
        member: Member,
        send: Callable[[DecodeOrder], None],
        at_work: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._member = member
        self._send = send
        self._at_work = at_work

    def __call__(self, vae: AutoencoderKLWan, latents_BCFHW: Tensor, tiling: Tiling) -> Iterator[list[list[Tensor]]]:
        """The tiles of each latent frame."""
        latents = latents_BCFHW.contiguous()
        with self._at_work():
            self._send(BeginDecode(Like(tuple(latents.shape), latents.dtype)))
            self._member.everyone.broadcast(latents)
        shares = [_Share(vae, latents, tiling, self._member, rank) for rank in range(self._member.everyone.size)]
        for index in range(latents.shape[2]):
            with self._at_work():
                self._send(DecodeFrame(index))
                tiles = shares[0].decode(index)
                for share in shares[1:]:
                    tiles |= share.receive(index)
            yield [[tiles[row, column] for column in range(len(tiling.columns))] for row in range(len(tiling.rows))]


class DecodeFollower:
    """Decodes its tiles on a rank that is not the first.

    Args:
        member: this rank.
        vae: tiling as rank 0's.
    """

    def __init__(self, member: Member, vae: AutoencoderKLWan) -> None:
        self._member = member
        self._vae = vae
        self._share: _Share | None = None

    @torch.no_grad()
    def obey(self, order: DecodeOrder) -> None:
        """Does it."""
        match order:
            case BeginDecode(like):
                empty = torch.empty(like.shape, dtype=like.dtype, device=self._member.device)
                latents = self._member.everyone.broadcast(empty)
                tiling = Tiling.of(self._vae, *latents.shape[-2:])
                self._share = _Share(self._vae, latents, tiling, self._member, self._member.rank)
            case DecodeFrame(index):
                if self._share is None:
                    raise RuntimeError("a frame was asked for before the latents came")
                self._share.send(index)

    def forget(self) -> None:
        """Lets go of the latents and of what the decoder remembers."""
        self._share = None


class _Share:
    """The tiles of one rank."""

    def __init__(self, vae: AutoencoderKLWan, latents: Tensor, tiling: Tiling, member: Member, rank: int) -> None:
        self._vae = vae
        self._latents = latents
        self._tiling = tiling
        self._member = member
        self._rank = rank
        tiles = [(row, column) for row in range(len(tiling.rows)) for column in range(len(tiling.columns))]
        areas = {tile: self._cut(tile)[0, 0, 0].numel() for tile in tiles}
        self._tiles = assigned(areas, member.everyone.size)[rank]
        mine = self._tiles if rank == member.rank else []
        self._caches = {tile: FeatureCache(vae) for tile in mine}

    def decode(self, index: int) -> dict[Tile, Tensor]:
        """This rank's tiles of a latent frame."""
        return {
            tile: cache.decode(self._cut(tile)[:, :, index : index + 1], index == 0)
            for tile, cache in self._caches.items()
        }

    def send(self, index: int) -> None:
        """Decodes them for rank 0."""
        if self._tiles:
            self._member.everyone.send(torch.cat([part.flatten() for part in self.decode(index).values()]), to=0)

    def receive(self, index: int) -> dict[Tile, Tensor]:
        """On rank 0: the tiles that another rank decoded."""
        shapes = {tile: self._decoded_shape(tile, index) for tile in self._tiles}
        sizes = [shape.numel() for shape in shapes.values()]
        if not sizes:
            return {}
        flat = self._member.everyone.receive(self._latents.new_empty(sum(sizes)), self._rank)
        return {tile: part.view(shapes[tile]) for tile, part in zip(shapes, flat.split(sizes), strict=True)}

    def _cut(self, tile: Tile) -> Tensor:
        return self._tiling.cut(self._latents, self._tiling.rows[tile[0]], self._tiling.columns[tile[1]])

    def _decoded_shape(self, tile: Tile, index: int) -> torch.Size:
        """Before unpatchifying: the first latent frame is one frame, each of the others four."""
        batch, _, _, rows, columns = self._cut(tile).shape
        scale = self._vae.spatial_compression_ratio // (self._vae.config.patch_size or 1)
        frames = 2 ** sum(self._vae.config.temperal_downsample) if index else 1
        return torch.Size((batch, self._vae.config.out_channels, frames, rows * scale, columns * scale))
