"""What a variant weighs and how much work it is: parameters, bytes, operations, from its shapes alone.

    shape (+ clip size) → Cost of a component → `component_weights`, `component_bytes`, `stage_work`

Every network is written down once, as a sum of `Cost`s: the same walk over its layers counts parameters and
operations, so the two cannot drift apart. A multiply-add is two operations, as in `torch.utils.flop_counter`;
norms, activations and other elementwise work are left out, because memory bounds them.

Planning, progress and benchmarks take their numbers from here. Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ovi_studio.shapes import (
    AudioVaeShape,
    SpectralVocoderShape,
    TextEncoderShape,
    TransformerShape,
    VideoVaeShape,
    VocoderShape,
)
from ovi_studio.variants import Modality, Size, Variant

Component: TypeAlias = Literal["transformer", "text_encoder", "video_vae", "audio_vae", "vocoder"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16", "fp8", "int8", "nf4"]
ModelStage: TypeAlias = Literal["encode_text", "encode_image", "denoise", "decode_video", "decode_audio"]

COMPONENTS: tuple[Component, ...] = get_args(Component)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

TIMESTEP_ROWS = (2, 1)  # distinct timesteps at most: video's own and 0 of a given first frame; audio's own
NF4_BLOCK = 64  # weights that share one absmax in bitsandbytes' NF4
AUDIO_PATCH_KERNEL = 7
FILTER_TAPS = 12  # of the vocoder's anti-aliasing filters


@dataclass(frozen=True)
class Cost:
    """What a piece of a network holds and does. Costs add up, and repeat by a factor.

    Args:
        parameters: elements of all its parameters.
        quantizable: those of them that are weights of linear layers inside blocks. Only they are quantized:
            embeddings, norms, biases, patch layers, heads and every convolution stay in 16 bits.
        rows: output rows of the quantizable weights; each has one scale in fp8 and int8.
        buffers: elements of its buffers, which are saved and moved with the parameters.
        matmul: operations of linear layers and convolutions.
        attention: operations of attention: queries times keys, and the weights times values.
    """

    parameters: int = 0
    quantizable: int = 0
    rows: int = 0
    buffers: int = 0
    matmul: int = 0
    attention: int = 0

    # Field by field: `dataclasses.astuple` copies deeply, and a plan is a sum of thousands of costs.

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters,
            self.quantizable + other.quantizable,
            self.rows + other.rows,
            self.buffers + other.buffers,
            self.matmul + other.matmul,
            self.attention + other.attention,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return self + -1 * other

    def __rmul__(self, count: int) -> "Cost":
        return Cost(
            count * self.parameters,
            count * self.quantizable,
            count * self.rows,
            count * self.buffers,
            count * self.matmul,
            count * self.attention,
        )

    def __floordiv__(self, count: int) -> "Cost":
        return Cost(
            self.parameters // count,
            self.quantizable // count,
            self.rows // count,
            self.buffers // count,
            self.matmul // count,
            self.attention // count,
        )

    @property
    def operations(self) -> int:
        """All operations."""
        return self.matmul + self.attention

    @property
    def work(self) -> "Cost":
        """The operations alone, without the weights."""
        return Cost(matmul=self.matmul, attention=self.attention)

    def bytes(self, precision: Precision) -> int:
        """Bytes of the weights (and buffers) when stored in `precision`.

        fp8 and int8 take a byte a quantizable weight and a float32 scale a row (torchao's per-row scheme; fp8
        by layerwise casting has no scales: 0.1 % less). nf4 takes half a byte a weight and a float32 absmax
        for 64 of them (bitsandbytes, without double quantization). The rest is in bfloat16.
        """
        plain = self.parameters - self.quantizable + self.buffers
        match precision:
            case "float32":
                return 4 * (plain + self.quantizable)
            case "bfloat16" | "float16":
                return 2 * (plain + self.quantizable)
            case "fp8" | "int8":
                return 2 * plain + self.quantizable + 4 * self.rows
            case "nf4":
                return 2 * plain + self.quantizable // 2 + 4 * (self.quantizable // NF4_BLOCK)


# --- Of a variant -----------------------------------------------------------------------------------------


def component_weights(variant: Variant) -> Mapping[Component, Cost]:
    """Parameters and buffers of every component. What they do is in `stage_work`."""
    audio_vae = audio_encoder_cost(variant.audio_vae, 0) + audio_decoder_cost(variant.audio_vae, 0)
    return {
        "transformer": transformer_cost(variant.transformer, 0, 0, 0).whole,
        "text_encoder": text_encoder_cost(variant.text_encoder, 0),
        "video_vae": video_encoder_cost(variant.video_vae, 1, 0, 0) + video_decoder_cost(variant.video_vae, 1, 0, 0),
        "audio_vae": audio_vae + audio_buffers(variant.audio_vae),
        "vocoder": vocoder_cost(variant.vocoder, 0),
    }


def component_bytes(variant: Variant, component: Component, precision: Precision) -> int:
    """Bytes of a component's weights in `precision`. The vocoder refuses to be cast: it is always float32."""
    return component_weights(variant)[component].bytes("float32" if component == "vocoder" else precision)


def stage_work(variant: Variant, size: Size, modality: Modality = "both") -> Mapping[ModelStage, Cost]:
    """The operations of every stage of a run that makes a clip of this (snapped) size.

    `encode_text` is one prompt, with its text keys and values in all blocks; `encode_image` one first frame;
    `denoise` one forward of the transformer for one prompt; the decodes are the whole clip. What belongs to a
    modality that is not made costs nothing.
    """
    frames, rows, columns = variant.latent_grid(*size)
    forward = forward_cost(variant, size, modality)
    work: dict[ModelStage, Cost] = {
        "encode_text": text_encoder_cost(variant.text_encoder, variant.text_len).work + forward.per_run,
        "encode_image": Cost(),
        "denoise": forward.per_forward(),
        "decode_video": Cost(),
        "decode_audio": Cost(),
    }
    if modality != "audio":
        work["encode_image"] = video_encoder_cost(variant.video_vae, 1, rows, columns).work
        work["decode_video"] = video_decoder_cost(variant.video_vae, frames, rows, columns).work
    if modality != "video":
        mel_frames = 2 * variant.audio_latents
        decoder = audio_decoder_cost(variant.audio_vae, variant.audio_latents)
        work["decode_audio"] = decoder.work + vocoder_cost(variant.vocoder, mel_frames).work
    return work


def forward_cost(variant: Variant, size: Size, modality: Modality = "both") -> "TransformerCost":
    """One forward of the variant's transformer for one prompt (one guidance pass), part by part."""
    return transformer_cost(
        variant.transformer,
        video_tokens=0 if modality == "audio" else variant.video_tokens(*size),
        audio_tokens=0 if modality == "video" else variant.audio_tokens,
        text_tokens=variant.text_len,
    )


def text_cache_bytes(variant: Variant, prompts: int = 2, precision: Precision = "bfloat16") -> int:
    """Bytes of all blocks' text keys and values, kept over a run: 755 MB for two prompts at full size."""
    shape = variant.transformer
    elements = prompts * shape.num_layers * 2 * 2 * variant.text_len * shape.dim  # two streams, keys and values
    return elements * (4 if precision == "float32" else 2)


# --- The transformer --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TransformerCost:
    """The parts of the twin transformer, each summed over all blocks.

    Linear layers are filed under the tokens they run on: the audio half's fusion keys and values, which read
    video tokens, are in `linear_video`. Weights count the same either way, because the halves are equal.
    """

    num_layers: int
    linear_video: Cost
    linear_audio: Cost
    self_attention_video: Cost
    self_attention_audio: Cost
    text_attention: Cost
    fusion_attention: Cost
    text_keys_values: Cost
    norms: Cost
    text_embedding: Cost
    time_embedding: Cost
    video_patch: Cost
    audio_patch: Cost
    heads: Cost

    @property
    def blocks(self) -> Cost:
        """All fusion blocks."""
        linear = self.linear_video + self.linear_audio + self.text_keys_values + self.norms
        attention = self.self_attention_video + self.self_attention_audio
        return linear + attention + self.text_attention + self.fusion_attention

    @property
    def block(self) -> Cost:
        """One fusion block, both halves: what streaming moves at a time."""
        return self.blocks // self.num_layers

    @property
    def outside_blocks(self) -> Cost:
        """Embeddings, patch layers and heads: what stays where the blocks are streamed."""
        return self.text_embedding + self.time_embedding + self.video_patch + self.audio_patch + self.heads

    @property
    def whole(self) -> Cost:
        """Everything."""
        return self.blocks + self.outside_blocks

    @property
    def per_run(self) -> Cost:
        """Operations that are the same at every step: the embedded prompt, its keys and values."""
        return (self.text_embedding + self.text_keys_values).work

    def per_forward(self, skipped_blocks: int = 0) -> Cost:
        """Operations of every forward; the negative pass skips one block where a skip layer is set."""
        blocks = self.blocks.work - self.text_keys_values.work
        once = self.text_embedding.work
        skipped = skipped_blocks * (blocks // self.num_layers)
        return blocks + self.outside_blocks.work - once - skipped


def transformer_cost(
    shape: TransformerShape, video_tokens: int, audio_tokens: int, text_tokens: int
) -> TransformerCost:
    """The twin transformer on one sample; without the tokens of one stream the other tower runs alone."""
    dim, layers = shape.dim, shape.num_layers
    fused = video_tokens > 0 and audio_tokens > 0
    streams = (video_tokens, audio_tokens)
    texts = [text_tokens if tokens else 0 for tokens in streams]
    timesteps = [rows if tokens else 0 for rows, tokens in zip(TIMESTEP_ROWS, streams, strict=True)]

    def linear(tokens: int) -> Cost:
        """Of half a block: q k v o, and q o of the cross step; k v for the other stream; feed-forward."""
        exchange = 2 * _linear(dim, dim, tokens if fused else 0)
        feed_forward = _linear(dim, shape.ffn_dim, tokens) + _linear(shape.ffn_dim, dim, tokens)
        return 6 * _linear(dim, dim, tokens) + exchange + feed_forward

    # Of half a block: q and k of self-attention; q, k and fusion k of the cross step; two LayerNorms with gain
    # and bias; the six modulation vectors.
    norms = _vectors((2 + 3 + 2 * 2 + 6) * dim)
    patch = shape.patch_size[0] * shape.patch_size[1] * shape.patch_size[2]
    hidden = shape.audio_patch_hidden_dim
    return TransformerCost(
        num_layers=layers,
        linear_video=layers * linear(video_tokens),
        linear_audio=layers * linear(audio_tokens),
        self_attention_video=layers * _attention(video_tokens, video_tokens, dim),
        self_attention_audio=layers * _attention(audio_tokens, audio_tokens, dim),
        text_attention=layers * _attention(video_tokens + audio_tokens, text_tokens, dim),
        fusion_attention=layers * 2 * _attention(video_tokens, audio_tokens, dim),
        text_keys_values=layers * 2 * _sum(_linear(dim, dim, tokens) for tokens in texts),
        norms=layers * 2 * norms,
        text_embedding=_sum(_layer(shape.text_dim, dim, 1, n) + _layer(dim, dim, 1, n) for n in texts),
        time_embedding=_sum(
            _layer(shape.freq_dim, dim, 1, n) + _layer(dim, dim, 1, n) + _layer(dim, 6 * dim, 1, n) for n in timesteps
        ),
        video_patch=_layer(shape.in_channels, dim, patch, video_tokens),
        audio_patch=_layer(shape.audio_in_channels, dim, AUDIO_PATCH_KERNEL, audio_tokens)
        + 3 * _layer(dim, hidden, AUDIO_PATCH_KERNEL, audio_tokens, bias=False),  # two in, one out
        heads=_layer(dim, shape.in_channels * patch, 1, video_tokens)
        + _layer(dim, shape.audio_in_channels, 1, audio_tokens)
        + 2 * _vectors(2 * dim),
    )


# --- The text encoder -------------------------------------------------------------------------------------


def text_encoder_cost(shape: TextEncoderShape, tokens: int) -> Cost:
    """`UMT5EncoderModel` on one prompt. Looking up embeddings takes no operations."""
    inner = shape.num_heads * shape.d_kv
    attention = (
        3 * _linear(shape.d_model, inner, tokens, bias=False)
        + _attention(tokens, tokens, inner)
        + _linear(inner, shape.d_model, tokens, bias=False)
    )
    feed_forward = 2 * _linear(shape.d_model, shape.d_ff, tokens, bias=False) + _linear(
        shape.d_ff, shape.d_model, tokens, bias=False
    )
    position_bias = _vectors(shape.relative_attention_num_buckets * shape.num_heads)
    block = attention + feed_forward + position_bias + 2 * _vectors(shape.d_model)
    return shape.num_layers * block + _vectors((shape.vocab_size + 1) * shape.d_model)  # + 1: the last norm


# --- The video VAE ----------------------------------------------------------------------------------------


def video_decoder_cost(shape: VideoVaeShape, frames: int, rows: int, columns: int) -> Cost:
    """`AutoencoderKLWan`'s decoder on `frames` latent frames of `rows` × `columns`, one after the other.

    The first latent frame gives one frame and skips the layers that double time; every other gives four.
    """
    widths = [shape.decoder_base_dim * multiple for multiple in reversed(shape.dim_mult)]
    doubles_time = list(reversed(shape.temperal_downsample))
    pixels = rows * columns
    cost = _layer(shape.z_dim, shape.z_dim, 1, frames * pixels)
    cost += _layer(shape.z_dim, widths[0], 27, frames * pixels) + _video_middle(widths[0], frames, pixels)
    entering = widths[0]
    for level, width in enumerate(widths):
        cost += _video_resnets(entering, width, shape.num_res_blocks + 1, frames * pixels)
        if level < len(doubles_time):
            if doubles_time[level]:
                cost += _layer(width, 2 * width, 3, (frames - 1) * pixels)
                frames = 2 * frames - 1
            pixels *= 4
            cost += _layer(width, width, 9, frames * pixels)
        entering = width
    return cost + _vectors(entering) + _layer(entering, shape.out_channels, 27, frames * pixels)


def video_encoder_cost(shape: VideoVaeShape, frames: int, rows: int, columns: int) -> Cost:
    """`AutoencoderKLWan`'s encoder on what becomes `frames` latent frames of `rows` × `columns`."""
    steps = len(shape.temperal_downsample)
    pixels = rows * columns * 4**steps
    frames = 1 + (frames - 1) * 2 ** sum(shape.temperal_downsample)
    entering = shape.base_dim
    cost = _layer(shape.in_channels, entering, 27, frames * pixels)
    for level, multiple in enumerate(shape.dim_mult):
        width = shape.base_dim * multiple
        cost += _video_resnets(entering, width, shape.num_res_blocks, frames * pixels)
        if level < steps:
            pixels //= 4
            cost += _layer(width, width, 9, frames * pixels)
            if shape.temperal_downsample[level]:
                frames = (frames + 1) // 2
                cost += _layer(width, width, 3, (frames - 1) * pixels)
        entering = width
    cost += _video_middle(entering, frames, pixels) + _vectors(entering)
    cost += _layer(entering, 2 * shape.z_dim, 27, frames * pixels)
    return cost + _layer(2 * shape.z_dim, 2 * shape.z_dim, 1, frames * pixels)


def _video_resnets(entering: int, width: int, count: int, positions: int) -> Cost:
    first = _vectors(entering + width) + _layer(entering, width, 27, positions)
    first += _layer(width, width, 27, positions)
    if entering != width:
        first += _layer(entering, width, 1, positions)
    other = 2 * (_vectors(width) + _layer(width, width, 27, positions))
    return first + (count - 1) * other


def _video_middle(width: int, frames: int, pixels: int) -> Cost:
    """Two residual blocks, and between them attention within each frame."""
    projections = _layer(width, 3 * width, 1, frames * pixels) + _layer(width, width, 1, frames * pixels)
    attention = _vectors(width) + projections + frames * _attention(pixels, pixels, width)
    return 2 * _video_resnets(width, width, 1, frames * pixels) + attention


# --- The audio VAE and the vocoder ------------------------------------------------------------------------


def audio_encoder_cost(shape: AudioVaeShape, latents: int) -> Cost:
    """`MMAudioVAE`'s encoder from the mel spectrogram; time halves once, after the first level."""
    length = 2 * latents
    entering = shape.hidden_channels
    cost = _layer(shape.mel_bins, entering, 3, length, bias=False)
    for level, multiple in enumerate(shape.channel_multipliers):
        width = shape.hidden_channels * multiple
        cost += _audio_resnets(entering, width, shape.layers_per_block, length)
        if level == 0:
            cost += _layer(width, width, 1, length, bias=False)
            length = latents
            cost += _layer(width, width, 1, length, bias=False)
        entering = width
    cost += _audio_middle(entering, length) + _layer(entering, 2 * shape.latent_channels, 3, length, bias=False)
    return cost + _vectors(1)  # the gain


def audio_decoder_cost(shape: AudioVaeShape, latents: int) -> Cost:
    """`MMAudioVAE`'s decoder to the mel spectrogram; time doubles once, after the last level but one."""
    length = latents
    entering = shape.hidden_channels * shape.channel_multipliers[-1]
    cost = _layer(shape.latent_channels, entering, 3, length, bias=False) + _audio_middle(entering, length)
    for level, multiple in reversed(list(enumerate(shape.channel_multipliers))):
        width = shape.hidden_channels * multiple
        cost += _audio_resnets(entering, width, shape.layers_per_block + 1, length)
        if level == 1:
            length *= 2
            cost += _layer(width, width, 3, length, bias=False)
        entering = width
    return cost + _layer(entering, shape.mel_bins, 3, length, bias=False) + _vectors(1)


def audio_buffers(shape: AudioVaeShape) -> Cost:
    """Mel filterbank, window, and the spectrogram's mean and deviation."""
    filterbank = shape.mel_bins * (shape.n_fft // 2 + 1)
    return Cost(buffers=filterbank + shape.n_fft + 2 * shape.mel_bins)


def _audio_resnets(entering: int, width: int, count: int, length: int) -> Cost:
    first = _layer(entering, width, 3, length, bias=False) + _layer(width, width, 3, length, bias=False)
    if entering != width:
        first += _layer(entering, width, 1, length, bias=False)
    return first + (count - 1) * 2 * _layer(width, width, 3, length, bias=False)


def _audio_middle(width: int, length: int) -> Cost:
    projections = _layer(width, 3 * width, 1, length, bias=False) + _layer(width, width, 1, length, bias=False)
    return 2 * _audio_resnets(width, width, 1, length) + projections + _attention(length, length, width)


def vocoder_cost(shape: VocoderShape | SpectralVocoderShape, mel_frames: int) -> Cost:
    """Either vocoder, for one sound."""
    if isinstance(shape, SpectralVocoderShape):
        return _spectral_vocoder_cost(shape, mel_frames)
    return _bigvgan_cost(shape, mel_frames)


def _spectral_vocoder_cost(shape: SpectralVocoderShape, mel_frames: int) -> Cost:
    """Blocks over mel frames. The Fourier transform, far less work, is left out."""
    width, norm = shape.dim, _vectors(2 * shape.dim)
    per_channel = Cost(parameters=8 * width, matmul=2 * 7 * width * mel_frames)
    feed_forward = _layer(width, shape.ffn_dim, 1, mel_frames) + _layer(shape.ffn_dim, width, 1, mel_frames)
    block = per_channel + norm + feed_forward + _vectors(width)
    ends = _layer(shape.num_mels, width, 7, mel_frames) + _layer(width, shape.n_fft + 2, 1, mel_frames)
    return ends + 2 * norm + shape.num_layers * block


def _bigvgan_cost(shape: VocoderShape, mel_frames: int) -> Cost:
    """Transposed convolutions, and after each the mean of some residual blocks."""
    width, length = shape.upsample_initial_channel, mel_frames
    cost = _layer(shape.num_mels, width, 7, length)
    for rate, kernel in zip(shape.upsample_rates, shape.upsample_kernel_sizes, strict=True):
        cost += _layer(width, width // 2, kernel, length)  # every input sample meets every tap
        width, length = width // 2, length * rate
        for block_kernel, dilations in zip(shape.resblock_kernel_sizes, shape.resblock_dilation_sizes, strict=True):
            convolution = _layer(width, width, block_kernel, length) + _anti_aliased_snake(width, length)
            cost += 2 * len(dilations) * convolution
    return cost + _anti_aliased_snake(width, length) + _layer(width, 1, 7, length)


def _anti_aliased_snake(width: int, length: int) -> Cost:
    """Doubles the rate, bends, halves it again: two learned vectors, and two fixed filters per channel."""
    return Cost(parameters=2 * width, buffers=2 * FILTER_TAPS, matmul=2 * 2 * FILTER_TAPS * width * length)


# --- Layers -----------------------------------------------------------------------------------------------


def _layer(inputs: int, outputs: int, taps: int, positions: int, bias: bool = True) -> Cost:
    """A convolution of `taps` weights a pair of channels, or, with one tap, a linear layer; not quantized."""
    weights = inputs * outputs * taps
    return Cost(parameters=weights + (outputs if bias else 0), matmul=2 * weights * positions)


def _linear(inputs: int, outputs: int, positions: int, bias: bool = True) -> Cost:
    """A linear layer inside a block."""
    layer = _layer(inputs, outputs, 1, positions, bias)
    return layer + Cost(quantizable=inputs * outputs, rows=outputs)


def _attention(queries: int, keys: int, width: int) -> Cost:
    """Attention of all heads together, `width` wide."""
    return Cost(attention=2 * 2 * queries * keys * width)


def _vectors(elements: int) -> Cost:
    """Parameters that multiply no matrix: gains, biases, tables."""
    return Cost(parameters=elements)


def _sum(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())
