"""From files in AudioCraft's released format to tensors. The one file that imports audiocraft.

A model is two files: `state_dict.bin`, the language model, and `compression_state_dict.bin`, the codec; or in place
of the second a note that names a codec on the hub, `{'pretrained': 'facebook/encodec_32khz'}`. The text encoder, T5,
is a third thing: a folder beside them, or on the hub.

The language model is never built as modules: its tensors are taken out of the file by name. The codec is built by
AudioCraft on the meta device and gets its tensors assigned. So no weight is initialised at random first.
"""

from __future__ import annotations

import logging
import pickle
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from musicgen_bento.engine.hub import Source
from musicgen_bento.engine.released import FRAME_RATE, read_shape, read_weights
from musicgen_bento.engine.weights import LMShape, LMWeights
from musicgen_bento.errors import LoadFailed

T5_FILES = ["config.json", "model.safetensors", "tokenizer*.json", "spiece.model", "special_tokens_map.json"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it comes from its files.

    Attributes:
        name: what it is called in answers.
        weights: the language model's.
        tokenizer: of the text encoder.
        text_encoder: T5, float32.
        codec: AudioCraft's compression model, float32, eval mode.
        sample_rate: Hz.
        channels: 1 or 2.
        frame_rate: frames a second.
    """

    name: str
    weights: LMWeights
    tokenizer: Any
    text_encoder: nn.Module
    codec: nn.Module
    sample_rate: int
    channels: int
    frame_rate: int

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return self.sample_rate // self.frame_rate


# transformers builds one model at a time: two threads in from_pretrained leave both models without weights.
_ONE_AT_A_TIME = threading.Lock()


def load(source: Source, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """Load a model. Any thread may; downloads go on side by side, the building takes turns.

    Args:
        source: where its files are.
        device: where to put it.
        dtype: of the language model.

    Raises:
        BrokenCheckpoint: a file is missing, truncated, foreign, or of a kind this engine does not run.
        ModelUnavailable: the hub cannot be reached, or the disk is full.
        UnknownModel: the hub does not have it.
        InvalidRequest: it needs a melody, which is not served yet.
        LoadFailed: AudioCraft is not installed.
    """
    lm_package = _read(source, "state_dict.bin")
    config = _config(source, "state_dict.bin", lm_package)
    with _understood(source, "state_dict.bin"):
        shape = read_shape(source, config)
    weights = read_weights(source, shape, lm_package["best_state"], device, dtype)
    tokenizer, text_encoder = _text_encoder(source, config, weights, device)
    codec = _codec(source, config, shape, device)
    return Checkpoint(
        name=source.name,
        weights=weights,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        codec=codec,
        sample_rate=int(codec.sample_rate),
        channels=int(codec.channels),
        frame_rate=int(codec.frame_rate),
    )


def _read(source: Source, filename: str) -> dict[str, Any]:
    """One checkpoint file; tensors and plain values only, mapped rather than read."""
    path = source.file(filename)
    try:
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise source.broken(filename, "is truncated or no checkpoint at all") from error
    if not isinstance(package, dict):
        raise source.broken(filename, "does not hold what a MusicGen checkpoint holds")
    return package


def _config(source: Source, filename: str, package: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(package.get("best_state"), dict) or not isinstance(package.get("xp.cfg"), str):
        raise source.broken(filename, "is not in AudioCraft's released format (best_state and xp.cfg)")
    try:
        # safe_load, so that the file is data; and a reference to anything but another key of it is missing data
        return OmegaConf.create(_without_resolvers(yaml.safe_load(package["xp.cfg"])))
    except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        raise source.broken(filename, "has a configuration (xp.cfg) that cannot be read") from error


_REFERENCE = re.compile(r"\$\{[\w.]+\}", re.ASCII)


def _without_resolvers(value: Any) -> Any:
    """A configuration in which `${key}` may stand, but nothing that reads the environment, as `${oc.env:...}` does."""
    if isinstance(value, dict):
        return {key: _without_resolvers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_resolvers(item) for item in value]
    if isinstance(value, str) and "${" in _REFERENCE.sub("", value):
        return "???"
    return value


def _text_encoder(source: Source, config: Any, weights: LMWeights, device: torch.device) -> tuple[Any, nn.Module]:
    """T5 and its tokenizer: the folder `t5` beside the files, else what the configuration names."""
    from transformers import T5EncoderModel, T5Tokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    name = str(config.conditioners.description.t5.name)
    folder = source.companion(name, T5_FILES, beside="t5")
    try:
        with _ONE_AT_A_TIME:
            tokenizer = T5Tokenizer.from_pretrained(folder)
            model: Any = T5EncoderModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise source.broken("t5", "cannot be read as a T5 encoder") from error
    if model.config.d_model != weights.text_weight.shape[1]:
        raise source.broken("t5", f"is {model.config.d_model} wide, and the model was trained with another")
    return tokenizer, model.eval().requires_grad_(False).to(device)


def _codec(source: Source, config: Any, shape: LMShape, device: torch.device) -> Any:
    """AudioCraft's codec, wrapped for stereo where the language model's configuration says so."""
    package = _read(source, "compression_state_dict.bin")
    builders = _builders()
    named = package.get("pretrained")
    codec = _pretrained_codec(source, str(named)) if named else _built_codec(source, package)
    codec = builders.get_wrapped_compression_model(codec, config)
    if (codec.num_codebooks, codec.cardinality, codec.frame_rate) != (shape.codebooks, shape.card, FRAME_RATE):
        raise source.broken("compression_state_dict.bin", "is the codec of another model")
    return codec.eval().requires_grad_(False).to(device)


def _built_codec(source: Source, package: dict[str, Any]) -> Any:
    config = _config(source, "compression_state_dict.bin", package)
    builders = _builders()
    with _understood(source, "compression_state_dict.bin"), torch.device("meta"):
        config.device = "meta"
        codec = builders.get_compression_model(config)
    try:
        state = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in package["best_state"].items()
        }
        codec.load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError) as error:
        raise source.broken("compression_state_dict.bin", "does not fit its own configuration") from error
    return codec


def _pretrained_codec(source: Source, name: str) -> Any:
    """Hugging Face's EnCodec in AudioCraft's wrapper."""
    from audiocraft.models.encodec import HFEncodecCompressionModel
    from transformers import EncodecModel

    folder = source.companion(name, ["config.json", "model.safetensors"], beside=name.rsplit("/", 1)[-1])
    try:
        with _ONE_AT_A_TIME:
            model = EncodecModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise source.broken("compression_state_dict.bin", "names a codec that cannot be read as an EnCodec") from error
    return HFEncodecCompressionModel(model)


@contextmanager
def _understood(source: Source, filename: str) -> Iterator[None]:
    """A configuration that lacks a key or has a value that makes no sense is the file's fault."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (OmegaConfBaseException, AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise source.broken(filename, "has a configuration (xp.cfg) that is no MusicGen's") from error


def _builders() -> Any:
    """audiocraft.models.builders; seconds to import, so only where a model is loaded."""
    logging.getLogger("xformers").setLevel(logging.ERROR)  # it warns of kernels that are never used here
    warnings.filterwarnings("ignore", message=".*torch.nn.utils.weight_norm", category=FutureWarning)  # audiocraft's
    try:
        from audiocraft.models import builders
    except ModuleNotFoundError as error:
        if error.name != "audiocraft":
            raise
        raise LoadFailed(
            "AudioCraft is not installed.",
            hint="`pip install --no-deps audiocraft==1.3.0`: with its dependencies it would bring a torch of 2023.",
        ) from error
    return builders
