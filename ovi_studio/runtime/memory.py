"""What a run has to hold: bytes of weights, activations and caches of every stage, from shapes alone.

Every formula counts the tensors that are alive at a stage's widest moment, as the code in `model/` creates
them one operation at a time (compiled code needs less). Each was held against a trace of all allocations of the
real modules; `docs/memory.md` has the table. What the CUDA context and fragmentation take is a reserve beside it.

Units: bytes. `size` arguments called `width` count bytes of an element: 2 in bf16, 4 in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, TypeAlias

from ovi_studio import arithmetic
from ovi_studio.arithmetic import Component
from ovi_studio.flux import FLUX_KREA, ImageModel
from ovi_studio.request import GeneratedFrame, GenerationRequest, Quality
from ovi_studio.shapes import SpectralVocoderShape, TextEncoderShape, TransformerShape, VideoVaeShape
from ovi_studio.variants import WHOLE_RUN, Modality, Size, Variant, is_guided

Precision: TypeAlias = Literal["float32", "bf16", "fp8_compute", "fp8_storage", "int8", "nf4"]
VaeTiling: TypeAlias = Literal["none", "tiled", "tile_by_tile", "split"]
FirstFrame: TypeAlias = Literal["none", "image", "generated"]

# What a CUDA process takes besides its tensors. Guessed: 0.3–0.5 GB of context, kernels and cuBLAS workspace
# are usual; 6 % covers blocks that the caching allocator cannot use again, and what other programs take meanwhile.
CUDA_CONTEXT_BYTES = 2**29
FRAGMENTATION = 0.06
# What the process takes in host memory besides weights. Guessed: torch with CUDA libraries loaded is about 2.5 GB
# resident, CPU torch 0.6 GB; then come the encoder's frame buffers.
CUDA_PROCESS_BYTES, CPU_PROCESS_BYTES = 3 * 2**30, 2**30
HOST_RESERVE_BYTES = 2**30  # left to the system; guessed
PREFETCHED_BLOCKS = 2  # streaming holds the block that runs and the next one
ADAPTER_RANK = 64  # of a LoRA nobody has looked into yet; guessed, generous


@dataclass(frozen=True)
class Workload:
    """What of a request matters to memory and time.

    Args:
        variant: the model.
        size: of the clip, snapped.
        modality: what is made.
        steps: of the sampler.
        passes: of the transformer a guided step: 2 with guidance, else 1.
        guided: share of the steps that are guided, in either stream.
        skipped_blocks: blocks that the negative pass leaves out.
        first_frame: where the first frame comes from.
        adapters: LoRAs put on.
        quality: the wish.
        image_model: draws the first frame where that is generated.
    """

    variant: Variant
    size: Size
    modality: Modality = "both"
    steps: int = 50
    passes: int = 2
    guided: float = 1.0
    skipped_blocks: int = 1
    first_frame: FirstFrame = "none"
    adapters: int = 0
    quality: Quality = "auto"
    image_model: ImageModel = FLUX_KREA

    @classmethod
    def of(cls, request: GenerationRequest, variant: Variant, image_model: ImageModel = FLUX_KREA) -> "Workload":
        """The workload of one take. A request whose size depends on its image should be resolved before."""
        defaults = variant.defaults
        steps = request.num_inference_steps or defaults.num_inference_steps
        intervals = []
        if request.modality != "audio" and (request.video_guidance_scale or defaults.video_guidance_scale) != 1:
            intervals.append(request.video_guidance_interval or WHOLE_RUN)
        if request.modality != "video" and (request.audio_guidance_scale or defaults.audio_guidance_scale) != 1:
            intervals.append(request.audio_guidance_interval or WHOLE_RUN)
        guided = sum(any(is_guided(interval, step, steps) for interval in intervals) for step in range(steps)) / steps
        skip_layer = defaults.slg_layer if request.slg_layer is None else request.slg_layer
        generated = isinstance(request.first_frame, GeneratedFrame)
        return cls(
            variant,
            request.clip_size(),
            request.modality,
            steps,
            2 if guided else 1,
            guided,
            1 if skip_layer else 0,
            "none" if request.first_frame is None else "generated" if generated else "image",
            len(request.adapters),
            request.quality,
            image_model,
        )

    @property
    def video_tokens(self) -> int:
        """Tokens of the video stream; 0 without picture."""
        return 0 if self.modality == "audio" else self.variant.video_tokens(*self.size)

    @property
    def audio_tokens(self) -> int:
        """Tokens of the audio stream; 0 without sound."""
        return 0 if self.modality == "video" else self.variant.audio_tokens

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that this run uses."""
        unused = {"both": (), "video": ("audio_vae", "vocoder"), "audio": ("video_vae",)}[self.modality]
        return tuple(name for name in arithmetic.COMPONENTS if name not in unused)


def usable_gpu_bytes(free: int) -> int:
    """What of a card's free memory tensors can have: the rest is the context's and lost to fragmentation."""
    return max(0, int((free - CUDA_CONTEXT_BYTES) * (1 - FRAGMENTATION)))


def free_bytes_for(usable: int) -> int:
    """The inverse: how much must be free for tensors to have `usable` bytes."""
    return int(usable / (1 - FRAGMENTATION)) + CUDA_CONTEXT_BYTES + 1


def element_bytes(precision: Precision) -> int:
    """Bytes of an activation. Quantized components compute in bf16."""
    return 4 if precision == "float32" else 2


# --- Weights ----------------------------------------------------------------------------------------------

_STORED: dict[Precision, arithmetic.Precision] = {
    "float32": "float32",
    "bf16": "bfloat16",
    "fp8_compute": "fp8",
    "fp8_storage": "fp8",
    "int8": "int8",
    "nf4": "nf4",
}


@dataclass(frozen=True)
class BlockBytes:
    """A component's weights, as streaming sees them: equal blocks, and what is outside of them.

    Args:
        count: blocks.
        block: bytes of one.
        outside: bytes of everything else: embeddings, patch layers, heads.
    """

    count: int
    block: int
    outside: int


@lru_cache(maxsize=256)
def weight_bytes(variant: Variant, component: Component, precision: Precision) -> int:
    """Bytes of a component's weights."""
    return arithmetic.component_bytes(variant, component, _STORED[precision])


@lru_cache(maxsize=64)
def transformer_blocks(variant: Variant, precision: Precision) -> BlockBytes:
    """The transformer's fusion blocks. Outside of them nothing is quantized."""
    cost = arithmetic.transformer_cost(variant.transformer, 0, 0, 0)
    stored = _STORED[precision]
    return BlockBytes(cost.num_layers, cost.block.bytes(stored), cost.outside_blocks.bytes(stored))


@lru_cache(maxsize=64)
def text_encoder_blocks(variant: Variant, precision: Precision) -> BlockBytes:
    """The text encoder's layers; outside of them is the table of word embeddings and the last norm."""
    shape = variant.text_encoder
    outside = (shape.vocab_size + 1) * shape.d_model * element_bytes(precision)
    inside = weight_bytes(variant, "text_encoder", precision) - outside
    return BlockBytes(shape.num_layers, inside // shape.num_layers, outside)


def adapter_bytes(workload: Workload) -> int:
    """LoRAs beside the weights, in bf16: two thin matrices of the guessed rank at every linear layer of a block.

    A stream's half has ten layers of dim → dim and two of dim ↔ ffn.
    """
    shape = workload.variant.transformer
    widths = 10 * 2 * shape.dim + 2 * (shape.dim + shape.ffn_dim)
    return workload.adapters * shape.num_layers * 2 * widths * ADAPTER_RANK * 2


# --- Text encoder -----------------------------------------------------------------------------------------


def text_activation_bytes(shape: TextEncoderShape, tokens: int, width: int) -> int:
    """The widest moment of encoding one prompt, beside the states of those before it.

    Everywhere alive are the word embeddings, the state and the normed state: 3 vectors a token of the model's width.
    - In attention: the position bias of all heads twice, as looked up and as the kernel wants it; queries, keys,
      values and the result.
    - In the feed-forward: four hidden vectors, as GELU (tanh) is computed one operation at a time.
    - Where distances between tokens are sorted into buckets: six tables of tokens × tokens in int64 and one in
      float32, beside queries, keys and values.
    A kernel may pad the bias once more for prompts whose length is no multiple of 16 (33 MB in bf16; not counted).
    """
    inner = shape.num_heads * shape.d_kv
    attention = 2 * shape.num_heads * tokens**2 * width + 4 * inner * tokens * width
    feed_forward = 4 * shape.d_ff * tokens * width
    buckets = (6 * 8 + 4) * tokens**2 + 3 * inner * tokens * width
    return 3 * shape.d_model * tokens * width + max(attention, feed_forward, buckets)


def unpacked_layer_bytes(shape: TextEncoderShape) -> int:
    """A quantized text encoder's widest layer in bf16, as it is multiplied."""
    return 2 * shape.d_ff * shape.d_model


def text_state_bytes(variant: Variant, prompts: int, width: int) -> int:
    """States of encoded prompts."""
    return prompts * variant.text_len * variant.transformer.text_dim * width


def step_cache_bytes(workload: Workload, width: int) -> int:
    """Tokens that the first-block cache keeps, of all passes: what the first block added, its output, and the rest."""
    tokens = workload.passes * (workload.video_tokens + workload.audio_tokens)
    return 3 * tokens * workload.variant.transformer.dim * width


def text_cache_bytes(workload: Workload, width: int) -> int:
    """Text keys and values of all blocks, for the prompts of all passes and the streams that run."""
    both = arithmetic.text_cache_bytes(workload.variant, workload.passes, "float32" if width == 4 else "bfloat16")
    return both if workload.modality == "both" else both // 2


# --- Denoising --------------------------------------------------------------------------------------------


def block_activation_bytes(
    shape: TransformerShape,
    tokens: tuple[int, int],
    batch: int,
    width: int,
    ffn_chunks: int = 1,
    text_tokens: int = 0,
) -> int:
    """The widest moment of a fusion block.

    x is a tensor of a stream's tokens × width; f is the same in float32. Alive are
    - in a stream's feed-forward: its state before the block, its state now, the normed input, and the hidden
      layer before and after GELU: 3 x + 2 hidden. Of the last of n chunks of tokens: 2 hidden / n, beside the
      results of the others;
    - where that is gated and added: both states, the normed input, the result: 4 x; in float32 a copy of the state,
      the gated result and their sum: 3 f, or 2 f where the state is float32 itself. As much in self-attention,
      where the key is rotated;
    - in a cross step, where the keys made of the other stream are rotated. Of the stream that reads: its state
      before the block and now, the normed input, the query plain and rotated, what it read in the text: 6 x. Of
      the stream that is read: its state before the block and now, after its own cross step too if that came first;
      normed, and as keys: 5 x, else 4 x. And 3 f or 2 f of it as above.
    A stream that waits for the other one's feed-forward holds two states: 2 x.

    Args:
        shape: of the transformer.
        tokens: of video and audio; 0 for a stream that does not run.
        batch: samples.
        width: bytes of an element.
        ffn_chunks: parts in which feed-forward layers take the tokens.
        text_tokens: whose keys and values the cross step makes itself; 0 where they are kept over the run.
    """

    def x(count: int) -> int:
        return batch * count * shape.dim * width

    def f(count: int) -> int:
        return (2 if width == 4 else 3) * batch * count * shape.dim * 4

    def feed_forward(own: int, other: int) -> int:
        hidden = 2 * batch * own * shape.ffn_dim * width
        inside = 3 * x(own) + ((ffn_chunks - 1) * x(own) + hidden) // ffn_chunks
        return max(inside, 4 * x(own) + f(own)) + 2 * x(other)

    def cross(reader: int, read: int, states: int) -> int:
        return 6 * x(reader) + (states + 2) * x(read) + f(read) + 2 * x(text_tokens)

    video, audio = tokens
    moments = [feed_forward(own, other) for own, other in ((video, audio), (audio, video)) if own]
    if video and audio:
        moments += [cross(video, audio, 2), cross(audio, video, 3)]
    return max(moments)


def sampler_bytes(workload: Workload, batch: int, width: int) -> int:
    """What lives through all steps: sampler state, rotary tables, text states.

    Derived, in latents of float32: those of this step and of the last, two kept outputs, the estimate, and a copy
    in the transformer's type. Where passes follow one another, the velocity of the first too. The text states of
    three prompts, and for a batch of two passes a copy of two for each stream.
    """
    variant, shape = workload.variant, workload.variant.transformer
    video = 0 if workload.modality == "audio" else shape.in_channels * _elements(variant.latent_grid(*workload.size))
    latents = video + shape.audio_in_channels * workload.audio_tokens
    states = 5 * 4 + (width if width < 4 else 0) + (4 if workload.passes > batch else 0)
    tables = (workload.video_tokens + workload.audio_tokens) * shape.attention_head_dim * 4
    return latents * states + tables + text_state_bytes(variant, 3 if batch == 1 else 7, width)


def denoise_activation_bytes(
    workload: Workload,
    batch: int,
    width: int,
    text_cache: bool = True,
    ffn_chunks: int = 1,
    own_tokens: int | None = None,
) -> int:
    """Everything besides weights and text cache that a step of the sampler holds at its widest.

    That is in a block as a rule. In very short clips it is while the text is projected for the cache, or
    in the audio tower's patch layer, with its input and three hidden tensors. Of video tokens that several cards
    share, a block has `own_tokens`.
    """
    variant, shape = workload.variant, workload.variant.transformer
    tokens = (workload.video_tokens, workload.audio_tokens)
    text = batch * variant.text_len * shape.dim * width
    embedded = sum(1 for count in tokens if count) * text
    blocks_tokens = (tokens[0] if own_tokens is None else own_tokens, tokens[1])
    text_tokens = 0 if text_cache else variant.text_len
    block = block_activation_bytes(shape, blocks_tokens, batch, width, ffn_chunks, text_tokens)
    patch = width * (sum(tokens) * shape.dim + 3 * tokens[1] * shape.audio_patch_hidden_dim)  # the passes share it
    normed = (2 if width == 4 else 3) * 4 * (text // width)  # where RMS norm is not one kernel
    projection = embedded + text + normed if text_cache else 0
    block = max(block, patch) + (0 if text_cache else embedded)
    return max(block, projection) + sampler_bytes(workload, batch, width)


# --- Video VAE --------------------------------------------------------------------------------------------


def feature_cache_bytes(shape: VideoVaeShape, rows: int, columns: int, width: int) -> int:
    """What the causal decoder remembers: the last two input frames of every convolution over time.

    `rows` × `columns` is in latents. 3,569 bytes a pixel at full size in bf16: 3.2 GB at 704×1280.
    """
    widths = [shape.decoder_base_dim * multiple for multiple in reversed(shape.dim_mult)]
    doubles_time = list(reversed(shape.temperal_downsample))
    pixels = rows * columns
    channels_pixels = (shape.z_dim + 4 * widths[0]) * pixels  # the first convolution, two middle blocks
    entering = widths[0]
    for level, out in enumerate(widths):
        channels_pixels += (entering + (2 * shape.num_res_blocks + 1) * out) * pixels
        if level < len(doubles_time):
            channels_pixels += out * pixels if doubles_time[level] else 0
            pixels *= 4
        entering = out
    return 2 * width * (channels_pixels + entering * pixels)  # and the last convolution


def decoder_activation_bytes(shape: VideoVaeShape, rows: int, columns: int, width: int) -> int:
    """The decoder's widest moment, beside its feature cache: the first residual block of the last level.

    It takes T = 4 frames of C channels at full resolution and makes C' of them. Alive are the level's input and
    its copy, the shortcut (T C'), the normed input, the two frames to remember, and the input with two frames put
    before it, twice: joined, and padded by a pixel around. 7,168 bytes a pixel at full size in bf16.
    """
    widths = [shape.decoder_base_dim * multiple for multiple in reversed(shape.dim_mult)]
    entering, out = (widths[-2], widths[-1]) if len(widths) > 1 else (widths[0], widths[0])
    frames = 2 ** sum(shape.temperal_downsample)
    scale = 2 ** len(shape.temperal_downsample)
    height, breadth = rows * scale, columns * scale
    plain = 3 * frames * entering + (frames * out if out != entering else 0) + 2 * entering + (frames + 2) * entering
    padded = (frames + 2) * entering
    return width * (plain * height * breadth + padded * (height + 2) * (breadth + 2))


def convolution_workspace_bytes(shape: VideoVaeShape, rows: int, columns: int, width: int) -> int:
    """What the widest convolution adds to `decoder_activation_bytes` on a card: 1,024 bytes a pixel at full size.

    Guessed: cuDNN copies its padded input and its output to a layout of its own. By then the joined input is
    gone, so that two outputs are left to count. Not seen in a trace of tensors.
    """
    scale = 4 ** len(shape.temperal_downsample)
    return (
        2
        * 2 ** sum(shape.temperal_downsample)
        * shape.decoder_base_dim
        * shape.dim_mult[0]
        * rows
        * columns
        * scale
        * width
    )


def decode_bytes(
    workload: Workload,
    tiling: VaeTiling,
    width: int,
    on_card: bool = False,
    own_tiles: Sequence[tuple[int, int]] = (),
) -> int:
    """Decoding the picture: latents, feature caches, the widest moment, and the frames just made.

    Whole, the frames of two latent frames are alive: the caller's, and those it has not got yet. `tiled` decodes all
    tiles of a latent frame before the next one. While the last of the largest is at work alive are every tile's
    cache, the caller's frames, the tiles that they were made of, and the new tiles so far. `tile_by_tile` decodes one
    tile to its end: its cache, and no frames, as they wait in host memory. `split` is as `tiled`, with the caches of
    a card's own tiles, and on the first card everybody's tiles of two latent frames.
    """
    variant, vae = workload.variant, workload.variant.video_vae
    frames, rows, columns = variant.latent_grid(*workload.size)
    latents = vae.z_dim * frames * rows * columns * (4 + width)
    latent_frame = 3 * variant.temporal_factor * variant.spatial_factor**2 * width  # bytes made of one latent
    if tiling == "none":
        largest = (rows, columns)
        held = feature_cache_bytes(vae, rows, columns, width) + 2 * latent_frame * rows * columns
    else:
        tiles = list(product(tile_spans(variant, rows), tile_spans(variant, columns)))
        largest = max(tiles)
        held = feature_cache_bytes(vae, *largest, width)
    if tiling == "tiled":
        areas = [height * breadth for height, breadth in tiles]
        so_far = sum(areas[: len(tiles) - 1 - tiles[::-1].index(largest)])
        held = sum(feature_cache_bytes(vae, *tile, width) for tile in tiles)
        held += latent_frame * (rows * columns + sum(areas) + so_far)
    elif tiling == "split":
        held = sum(feature_cache_bytes(vae, *tile, width) for tile in own_tiles)
        held += latent_frame * (rows * columns + 2 * sum(height * breadth for height, breadth in tiles))
    workspace = convolution_workspace_bytes(vae, *largest, width) if on_card else 0
    return latents + held + decoder_activation_bytes(vae, *largest, width) + workspace


def decode_host_bytes(workload: Workload, tiling: VaeTiling) -> int:
    """Host memory of the decode: frames on their way to the encoder; with `tile_by_tile` the clip's tiles, bf16."""
    if workload.modality == "audio":
        return 0
    chunk = 3 * workload.variant.temporal_factor * workload.size.area
    if tiling != "tile_by_tile":
        return 8 * chunk
    _, rows, columns = workload.variant.latent_grid(*workload.size)
    return 8 * chunk + int(
        3 * 2 * workload.variant.num_frames * workload.size.area * tile_overlap(workload.variant, rows, columns)
    )


TILE_PIXELS, TILE_STRIDE_PIXELS = 256, 192  # defaults of diffusers' AutoencoderKLWan


def tile_spans(variant: Variant, latents: int) -> list[int]:
    """Lengths of the tiles along a side of `latents` of a picture that is tiled at all."""
    tile, stride = TILE_PIXELS // variant.spatial_factor, TILE_STRIDE_PIXELS // variant.spatial_factor
    return [min(tile, latents - start) for start in range(0, latents, stride)]


def tile_overlap(variant: Variant, rows: int, columns: int) -> float:
    """How many times a tiled decode computes the average pixel."""
    return sum(tile_spans(variant, rows)) * sum(tile_spans(variant, columns)) / (rows * columns)


def can_tile(workload: Workload) -> bool:
    """Whether the picture is larger than a tile."""
    if workload.modality == "audio":
        return False
    return max(workload.size) > TILE_PIXELS


def image_encode_bytes(workload: Workload, width: int) -> int:
    """Encoding the first frame: the last convolution of the encoder's first level.

    Tensors of the level's channels and of its resolution, a patch a pixel: the level's input and its copy, the last
    residual block's input (the level's own, where there is one block), what enters the convolution, the result, and
    a frame that each convolution remembers; and what enters with two frames before it and padded by a pixel around.
    The picture itself: in float32, in the VAE's type, in patches, and remembered.
    """
    vae, size = workload.variant.video_vae, workload.size
    rows, columns = size.height // vae.patch_size, size.width // vae.patch_size
    blocks = vae.num_res_blocks
    plain = (5 if blocks > 1 else 4) + 2 * blocks
    picture = 3 * size.area * (4 + (3 if width < 4 else 2) * width)
    return vae.base_dim * width * (plain * rows * columns + 3 * (rows + 2) * (columns + 2)) + picture


def preview_bytes(variant: Variant, width: int) -> int:
    """Encoding the nine frames of 256×256 that previews are fitted on, once, while a model is loaded.

    Measured on a trace: 49.5 tensors of the encoder's first level at full size in bf16, 0.26 GB.
    """
    vae = variant.video_vae
    return 50 * vae.base_dim * (256 // vae.patch_size) ** 2 * width


# --- Sound ------------------------------------------------------------------------------------------------


def vocoder_bytes(workload: Workload) -> int:
    """The vocoder in float32. BigVGAN: an activation in its last levels, which are all of one size.

    Tensors of channels × samples: the level's input, the sum of its blocks so far, the state of the block that runs,
    the activation's input; and three upsampled to twice the samples: itself, times a factor, and the sine of that.
    The audio VAE, before it, needs less than half of this. The spectral one: the spectrum as what it is drawn from,
    as complex numbers, and as windows that overlap.
    """
    if workload.modality == "video":
        return 0
    shape = workload.variant.vocoder
    if isinstance(shape, SpectralVocoderShape):
        return 5 * 4 * (shape.n_fft + 2) * workload.variant.num_samples // shape.hop_length
    channels = shape.upsample_initial_channel // 2 ** len(shape.upsample_rates)
    return (4 + 3 * 2) * 4 * channels * workload.variant.num_samples


def _elements(grid: tuple[int, int, int]) -> int:
    return grid[0] * grid[1] * grid[2]
