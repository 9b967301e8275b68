"""FLUX.1, which draws first frames: what it is made of, what that weighs, and how it is asked.

A rectified-flow transformer of two kinds of blocks, two text encoders (T5-XXL for the words, CLIP-L for the whole) and
a VAE. Guidance is distilled into it: a step is one pass. Nothing here imports torch.

Sources: the configurations in the repository black-forest-labs/FLUX.1-Krea-dev, and its model card (28 to 32 steps,
guidance 3.5 to 5, 1024 pixels a side).
"""

from dataclasses import dataclass

from ovi_studio.shapes import TextEncoderShape
from ovi_studio.variants import Size, scale_to_area

STEPS = 28
GUIDANCE_SCALE = 4.5  # as the reference implementation of Ovi asks for its first frames
TEXT_LEN = 512  # tokens that T5's part of the prompt is padded to
SIZE_MULTIPLE = 16  # pixels a latent (8) times latents a token (2)
_CLIP_PARAMETERS, _VAE_PARAMETERS = 123_060_480, 83_819_683
_T5_XXL = TextEncoderShape(vocab_size=32_128, d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64)


@dataclass(frozen=True)
class ImageModel:
    """A FLUX.1 model by its numbers; the defaults are the released one's.

    Args:
        num_layers: blocks in which picture and text have weights of their own.
        num_single_layers: blocks that take them as one sequence.
        num_attention_heads: of each block.
        attention_head_dim: width of a head.
        in_channels: of a token: 16 latent channels of 2×2 latents.
        pooled_projection_dim: width of CLIP's summary of the prompt.
        text_encoder: T5's shape.
        vae_channels: of the VAE's levels, the finest first.
        sample_size: pixels a side of the square that it was trained for.
    """

    num_layers: int = 19
    num_single_layers: int = 38
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    in_channels: int = 64
    pooled_projection_dim: int = 768
    text_encoder: TextEncoderShape = _T5_XXL
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    sample_size: int = 1024

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    def frame_size(self, clip: Size) -> Size:
        """The size at which it draws the first frame of a clip: the clip's aspect, at the area it was trained for."""
        return scale_to_area(*clip, self.sample_size**2, SIZE_MULTIPLE)

    def tokens(self, frame: Size) -> int:
        """Of a picture of this size and its prompt."""
        return frame.area // SIZE_MULTIPLE**2 + TEXT_LEN

    # --- Parameters ---

    @property
    def widest_block(self) -> int:
        """Parameters of a block of the first kind: for picture and text each, modulation, attention, feed-forward."""
        return 36 * self.dim**2 + 30 * self.dim + 4 * self.attention_head_dim

    @property
    def block_parameters(self) -> int:
        """Of all blocks; one of the second kind has modulation, attention and feed-forward once."""
        single = 15 * self.dim**2 + 11 * self.dim + 2 * self.attention_head_dim
        return self.num_layers * self.widest_block + self.num_single_layers * single

    @property
    def outside_parameters(self) -> int:
        """Of the transformer outside of its blocks: token, text, time, guidance and summary layers, and the head."""
        dim = self.dim
        tokens = (self.in_channels + 1) * dim + (dim + 1) * self.in_channels
        text = (self.text_encoder.d_model + 1) * dim
        times = 2 * ((256 + 1) * dim + (dim + 1) * dim)
        summary = (self.pooled_projection_dim + 1) * dim + (dim + 1) * dim
        return tokens + text + times + summary + 2 * (dim + 1) * dim

    @property
    def text_block_parameters(self) -> int:
        """Of one of T5's layers."""
        shape = self.text_encoder
        return shape.d_model * (4 * shape.num_heads * shape.d_kv + 3 * shape.d_ff + 2)

    @property
    def text_outside_parameters(self) -> int:
        """Of both text encoders outside of T5's layers: T5's words, and CLIP."""
        shape = self.text_encoder
        positions = shape.relative_attention_num_buckets * shape.num_heads
        return (shape.vocab_size + 1) * shape.d_model + positions + _CLIP_PARAMETERS

    @property
    def transformer_parameters(self) -> int:
        """Of the whole transformer."""
        return self.block_parameters + self.outside_parameters

    @property
    def text_parameters(self) -> int:
        """Of both text encoders."""
        return self.text_encoder.num_layers * self.text_block_parameters + self.text_outside_parameters

    @property
    def vae_parameters(self) -> int:
        """Of the VAE; of any but the released one a bound, as it is little beside the rest."""
        return _VAE_PARAMETERS

    # --- Work ---

    def step_operations(self, frame: Size) -> tuple[float, float]:
        """Operations of a step: of matrix products (12 dim² a token and block), and of attention."""
        tokens, blocks = self.tokens(frame), self.num_layers + self.num_single_layers
        return 24.0 * self.dim**2 * tokens * blocks, 4.0 * tokens**2 * self.dim * blocks

    def text_operations(self) -> float:
        """Operations of encoding a prompt."""
        return 2.0 * TEXT_LEN * self.text_encoder.num_layers * self.text_block_parameters


FLUX_KREA = ImageModel()
