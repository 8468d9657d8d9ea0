"""The models this service knows by name: every released MusicGen, and the built-in one."""

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
FLOAT32_NUMBERS = 109_628_544 + CODEC_BYTES // 4  # T5's encoder and the codec
_SHAPES = {"small": (24, 1024), "medium": (48, 1536), "melody": (48, 1536), "large": (48, 2048)}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model before it is loaded.

    Attributes:
        id: the one name that answers carry; for released models the hub's own.
        aliases: other spellings that mean the same model.
        channels: 1 mono, 2 stereo.
        conditioning: what it listens to: text, melody.
        parameters: of the language model, its text projection included.
        layers: of the language model.
        dim: its width.
        float32_numbers: how many numbers T5 and the codec have.
        window: longest stretch made in one go, in seconds; longer clips are continued past it.
        sample_rate: Hz.
        license: of the weights.
        note: what a user should know before choosing it.
        folder: where its files are, for a model in the package; None means the hub.
    """

    id: str
    aliases: tuple[str, ...]
    channels: int
    conditioning: tuple[str, ...]
    parameters: int
    layers: int
    dim: int
    num_float32_params: int = FLOAT32_NUMBERS
    window: float = 30.0
    sample_rate: int = 32_000
    license: str = "CC-BY-NC 4.0"
    note: str = ""
    folder: Path | None = None

    @property
    def download_bytes(self) -> int:
        """About what the hub sends for it: float16 weights, the codec, and the T5 that all of them share."""
        return 0 if self.folder else 2 * self.parameters + CODEC_BYTES + T5_BYTES

    def memory_bytes(self, precision: Precision, seconds: float) -> int:
        """What it takes in memory with one clip, the largest there is; the files say it exactly.

        Args:
            precision: of the language model.
            seconds: the longest clip that may be asked for.
        """
        positions = min(self.window, seconds) * 50 + 3
        positions = -(-positions // BLOCK_SIZE) * BLOCK_SIZE if precision.native_kernel else positions
        own = 2 * positions * precision.kv_bytes_per_element  # of each channel of keys and values, guided
        prompt = 512 * (
            precision.kv_bytes_per_element if precision.native_kernel else precision.compute_dtype.itemsize
        )  # a long one,
        if precision.native_kernel:
            prompt = max(
                prompt, 1.1 * MAX_FUSED_TOKENS * self.dim // 64
            )  # or one that is folded: a row of a matrix for each head
        clip = 2 * self.layers * self.dim * int(own + prompt)
        return (
            precision.estimate_model_bytes(self.parameters, self.layers, self.dim) + clip + 4 * self.num_float32_params
        )


def _released(size: str, parameters: int, *, stereo: bool = False, melody: bool = False) -> ModelCard:
    """A card for `facebook/musicgen-...`; documents in use also write `-stereo` at the end."""
    kind = f"melody-{size}" if melody and size != "melody" else size
    hub = f"musicgen-stereo-{kind}" if stereo else f"musicgen-{kind}"
    spellings = {hub, hub.removeprefix("musicgen-"), f"facebook/{hub}"}
    if stereo:
        spellings |= {f"facebook/musicgen-{kind}-stereo", f"musicgen-{kind}-stereo", f"{kind}-stereo"}
    return ModelCard(
        id=f"facebook/{hub}",
        aliases=tuple(sorted(spellings - {f"facebook/{hub}"})),
        channels=2 if stereo else 1,
        conditioning=("text", "melody") if melody else ("text",),
        parameters=parameters,
        layers=_SHAPES[size][0],
        dim=_SHAPES[size][1],
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
        note="Built in and tiny: loops for trying, testing and offline use. For music to keep take a MusicGen.",
        folder=DEMO_FOLDER,
    ),
    _released("small", 420_371_456),
    _released("medium", 1_838_737_920),
    _released("large", 3_256_956_928),
    _released("melody", 1_385_625_600, melody=True),
    _released("large", 2_451_480_576, melody=True),
    _released("small", 437_152_768, stereo=True),
    _released("medium", 1_863_909_888, stereo=True),
    _released("large", 3_290_519_552, stereo=True),
    _released("melody", 1_410_797_568, stereo=True, melody=True),
    _released("large", 2_485_043_200, stereo=True, melody=True),
)

_BY_NAME = {name.lower(): card for card in CATALOG for name in (card.id, *card.aliases)}


def find_model(name: str) -> ModelCard | None:
    """The card of a model by its id or any of its spellings, whatever the case; None where there is none."""
    return _BY_NAME.get(name.strip().lower())
