"""The catalogue of models that requests can name: every released MusicGen, and the built-in model `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_bento.native.bindings import BLOCK_SIZE, MAX_FUSED_TOKENS

if TYPE_CHECKING:
    from musicgen_bento.precision import Precision

DEMO_FOLDER = Path(__file__).parent / "demo"

CODEC_BYTES = 236_000_000
T5_BYTES = 892_000_000
T5_AND_CODEC_PARAMS = 109_628_544 + CODEC_BYTES // 4  # T5's encoder, and the float32 codec
FLOAT32_BYTES = 4

FRAME_RATE = 50  # frames per second
MAX_DELAY_FRAMES = 3  # the delay pattern adds one position for each of the 4 codebooks but the first
MAX_PROMPT_TOKENS = 512  # T5 tokens
HEAD_DIM = 64  # of every released model
FUSED_BYTES_PER_ELEMENT = 1.1  # int8 elements of a fused prompt, and their scales

_LAYERS_AND_DIM = {"small": (24, 1024), "medium": (48, 1536), "melody": (48, 1536), "large": (48, 2048)}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The properties of a model that are known before it is loaded.

    Attributes:
        id: the canonical name, which responses contain; for released models the name of the hub repository.
        aliases: other names of the model.
        channels: 1 mono, 2 stereo.
        conditioning: kinds of input that the model can follow: text, melody.
        parameters: number of parameters of the language model, its text projection included.
        layers: number of layers of the language model.
        dim: width of the language model.
        num_float32_params: number of parameters of T5 and the codec, which are always float32.
        window: the longest clip in seconds that the model reads in one sequence; longer clips are continued.
        sample_rate: Hz.
        license: licence of the weights.
        note: what a user should know before choosing the model.
        folder: folder of the model's files, for a model in this package; None for a model of the hub.
    """

    id: str
    aliases: tuple[str, ...]
    channels: int
    conditioning: tuple[str, ...]
    parameters: int
    layers: int
    dim: int
    num_float32_params: int = T5_AND_CODEC_PARAMS
    window: float = 30.0
    sample_rate: int = 32_000
    license: str = "CC-BY-NC 4.0"
    note: str = ""
    folder: Path | None = None

    @property
    def download_bytes(self) -> int:
        """The approximate size of the download: float16 weights, the codec, and T5, which all models share."""
        return 0 if self.folder else 2 * self.parameters + CODEC_BYTES + T5_BYTES

    def memory_bytes(self, precision: Precision, max_duration: float) -> int:
        """Estimate the memory of the model with one request of the longest duration and the largest prompt.

        The exact size is known only from the files; see `checkpoint`.

        Args:
            precision: number formats of the language model.
            max_duration: the longest clip in seconds that a request may have.
        """
        model_bytes = precision.estimate_model_bytes(self.parameters, self.layers, self.dim)
        return model_bytes + self._request_bytes(precision, max_duration) + FLOAT32_BYTES * self.num_float32_params

    def _request_bytes(self, precision: Precision, max_duration: float) -> int:
        """Estimate the KV cache of one request: keys and values of `dim` channels per layer."""
        positions = min(self.window, max_duration) * FRAME_RATE + MAX_DELAY_FRAMES
        if precision.native_kernel:
            positions = -(-positions // BLOCK_SIZE) * BLOCK_SIZE  # whole blocks
            prompt_bytes_per_element = precision.kv_bytes_per_element
        else:
            prompt_bytes_per_element = precision.compute_dtype.itemsize
        rows = 2  # classifier-free guidance: a conditional and an unconditional row
        past_bytes = rows * positions * precision.kv_bytes_per_element
        prompt_bytes = MAX_PROMPT_TOKENS * prompt_bytes_per_element
        if precision.native_kernel:
            # A fused prompt has two matrices of MAX_FUSED_TOKENS x dim for each head.
            prompt_bytes = max(prompt_bytes, FUSED_BYTES_PER_ELEMENT * MAX_FUSED_TOKENS * self.dim // HEAD_DIM)
        return 2 * self.layers * self.dim * int(past_bytes + prompt_bytes)


def _released_model(size: str, parameters: int, *, stereo: bool = False, melody: bool = False) -> ModelCard:
    """Build the card of `facebook/musicgen-...`. Documents also write the names with `-stereo` at the end."""
    variant = f"melody-{size}" if melody and size != "melody" else size
    hub_name = f"musicgen-stereo-{variant}" if stereo else f"musicgen-{variant}"
    names = {hub_name, hub_name.removeprefix("musicgen-"), f"facebook/{hub_name}"}
    if stereo:
        names |= {f"facebook/musicgen-{variant}-stereo", f"musicgen-{variant}-stereo", f"{variant}-stereo"}
    layers, dim = _LAYERS_AND_DIM[size]
    return ModelCard(
        id=f"facebook/{hub_name}",
        aliases=tuple(sorted(names - {f"facebook/{hub_name}"})),
        channels=2 if stereo else 1,
        conditioning=("text", "melody") if melody else ("text",),
        parameters=parameters,
        layers=layers,
        dim=dim,
    )


CATALOG: tuple[ModelCard, ...] = (
    ModelCard(
        id="demo",
        aliases=(),
        channels=1,
        conditioning=("text",),
        parameters=6_843_136,
        layers=6,
        dim=256,
        num_float32_params=2_898_550,
        window=8.0,
        license="MIT",
        note="Built in and tiny: loops for trials, tests and offline use. For better music choose a MusicGen model.",
        folder=DEMO_FOLDER,
    ),
    _released_model("small", 420_371_456),
    _released_model("medium", 1_838_737_920),
    _released_model("large", 3_256_956_928),
    _released_model("melody", 1_385_625_600, melody=True),
    _released_model("large", 2_451_480_576, melody=True),
    _released_model("small", 437_152_768, stereo=True),
    _released_model("medium", 1_863_909_888, stereo=True),
    _released_model("large", 3_290_519_552, stereo=True),
    _released_model("melody", 1_410_797_568, stereo=True, melody=True),
    _released_model("large", 2_485_043_200, stereo=True, melody=True),
)

_BY_NAME = {name.lower(): card for card in CATALOG for name in (card.id, *card.aliases)}


def find_model(name: str) -> ModelCard | None:
    """Return the model with this id or alias, in any case; None if there is none."""
    return _BY_NAME.get(name.strip().lower())
