"""From files in AudioCraft's released format to tensors. The one file that imports audiocraft.

A model is two files: `state_dict.bin`, the language model, and `compression_state_dict.bin`, the codec; or in place
of the second a note that names a codec on the hub, `{'pretrained': 'facebook/encodec_32khz'}`. The text encoder, T5,
is a third thing: a folder beside them, or on the hub.

The language model is never built as modules: its tensors are taken out of the file by name. The codec is built by
AudioCraft on the meta device and gets its tensors assigned. So no weight is initialised at random first.

It goes in two steps. `open_files` has the files here and makes sure that they are a model, without reading its weights:
what it will take in memory is known then. `build` reads them.
"""

from __future__ import annotations

import logging
import pickle
import re
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from musicgen_bento.checkpoint.download import DownloadProgress
from musicgen_bento.checkpoint.lm_state_dict import FRAME_RATE, read_shape, read_weights
from musicgen_bento.checkpoint.source import CODEC_FILES, T5_FILES, T5_SUBFOLDER, Source
from musicgen_bento.errors import LoadFailed
from musicgen_bento.lm.factory import Weights
from musicgen_bento.lm.kv_cache.factory import request_kv_bytes
from musicgen_bento.lm.packed_weights import is_supported, pack_weights
from musicgen_bento.lm.weights import MAX_PROMPT_TOKENS, LMShape, LMWeights
from musicgen_bento.native.bindings import MAX_FUSED_TOKENS
from musicgen_bento.native.mmap_tensor import evict_file_pages
from musicgen_bento.precision import FLOAT32, FLOAT32_NATIVE, ModelSize, Precision


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
    weights: Weights
    tokenizer: Any
    text_encoder: nn.Module
    codec: nn.Module
    sample_rate: int
    channels: int
    frame_rate: int

    @property
    def hop_length(self) -> int:
        """Samples of a frame."""
        return self.sample_rate // self.frame_rate

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        modules = (self.text_encoder, self.codec)
        return self.weights.precision.model_bytes(self.weights.size) + sum(
            tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers())
        )


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A model's files: here, in the released format, mapped and not read.

    Attributes:
        source: where they are.
        shape: the language model's sizes.
        state: its tensors by name, as the file has them.
        text_encoder: T5's folder.
        codec: AudioCraft's compression model; its tensors are in the file until they are used.
        mapped: the files whose tensors these are.
        size: of the language model.
        float32_numbers: how many T5 and the codec have, which are float32 in every precision.
    """

    source: Source
    shape: LMShape
    state: dict[str, Tensor]
    text_encoder: Path
    codec: Any
    mapped: tuple[Path, ...]
    size: ModelSize
    num_float32_params: int

    def release_pages(self) -> None:
        """What was read of them takes no memory any more; whoever wants it reads it again."""
        for path in self.mapped:
            evict_file_pages(path)

    def model_bytes(self, precision: Precision) -> int:
        """What the model takes in memory, with the language model in this precision."""
        return precision.model_bytes(self.size) + 4 * self.num_float32_params

    def max_request_bytes(self, precision: Precision, seconds: float) -> int:
        """What the most demanding clip of so many seconds takes while it is made."""
        frames = min(self.shape.window, int(seconds * FRAME_RATE) + 1)
        positions = self.shape.pattern.last_position(frames)
        # of a large model a prompt that is just folded takes more than the longest, which is not
        return max(
            request_kv_bytes(self.shape, precision, 2, positions, tokens)
            for tokens in (MAX_FUSED_TOKENS, MAX_PROMPT_TOKENS)
        )


# transformers builds one model at a time: two threads in from_pretrained leave both models without weights.
_ONE_AT_A_TIME = threading.Lock()


def load(source: Source, device: torch.device, precision: Precision) -> Checkpoint:
    """Both steps. Raises as they do."""
    return build(open_files(source), device, precision)


def open_files(source: Source, download: DownloadProgress | None = None) -> CheckpointFiles:
    """Have a model's files here and make sure of them. Any thread may; downloads go on side by side.

    Args:
        source: where they are.
        download: told what comes from the hub.

    Raises:
        BrokenCheckpoint: a file is missing, truncated, foreign, or of a kind this engine does not run.
        ModelUnavailable: the hub cannot be reached, or the disk is full.
        UnknownModel: the hub does not have it.
        InvalidRequest: it needs a melody, which is not served yet.
        LoadFailed: AudioCraft is not installed.
    """
    download = download or DownloadProgress()
    source.register_downloads(download)
    lm_package = _read(source, "state_dict.bin", download)
    config = _config(source, "state_dict.bin", lm_package)
    with _understood(source, "state_dict.bin"):
        shape = read_shape(source, config)
    state = lm_package["best_state"]
    weights = read_weights(source, shape, state, torch.device("meta"), FLOAT32)
    name = str(config.conditioners.description.t5.name)
    text_encoder = source.dependency(name, T5_FILES, subfolder=T5_SUBFOLDER, download=download)
    text_numbers = _text_numbers(source, text_encoder, weights)
    codec = _codec(source, config, shape, download)
    return CheckpointFiles(
        source=source,
        shape=shape,
        state=state,
        text_encoder=text_encoder,
        codec=codec,
        mapped=tuple(source.file(name, download) for name in ("state_dict.bin", "compression_state_dict.bin")),
        size=weights.size,
        num_float32_params=text_numbers + _numbers(codec),
    )


def build(files: CheckpointFiles, device: torch.device, precision: Precision) -> Checkpoint:
    """Read a model into memory. Any thread may; T5's take turns.

    Args:
        files: of the model.
        device: where to put it.
        precision: of the language model.

    Raises:
        BrokenCheckpoint: a file cannot be read after all.
    """
    weights = load_weights(files, device, precision)
    tokenizer, text_encoder = _text_encoder(files.source, files.text_encoder, device)
    codec = files.codec.to(device)
    torch.backends.cudnn.allow_tf32 = False  # blocks of a stream would differ from the whole by 1e-3
    return Checkpoint(
        name=files.source.name,
        weights=weights,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        codec=codec,
        sample_rate=int(codec.sample_rate),
        channels=int(codec.channels),
        frame_rate=int(codec.frame_rate),
    )


def load_weights(files: CheckpointFiles, device: torch.device, precision: Precision) -> Weights:
    """The language model alone; see `build`.

    Raises:
        LoadFailed: the kernel has no model of these sizes.
    """
    if precision == FLOAT32_NATIVE and not is_supported(files.shape):
        precision = FLOAT32
    weights = read_weights(files.source, files.shape, files.state, device, precision)
    if not precision.native_kernel:
        return weights
    if not is_supported(files.shape):
        raise LoadFailed(
            f"{files.source.name} has heads or layers of sizes that {precision.name} is not made for here.",
            hint="Set MUSICGEN_PRECISION=float32.",
            field="model",
        )
    return pack_weights(weights, files.release_pages)


def check_text_encoder(files: CheckpointFiles) -> None:
    """Read of a model's files what `open_files` leaves unread, but for the weights: T5 and its tokenizer.

    Raises:
        BrokenCheckpoint: they cannot be read.
    """
    _text_encoder(files.source, files.text_encoder, torch.device("cpu"))


def _read(source: Source, filename: str, download: DownloadProgress) -> dict[str, Any]:
    """One checkpoint file; tensors and plain values only, mapped rather than read."""
    path = source.file(filename, download)
    try:
        if not _own_order(path):
            raise source.checkpoint_error(filename, "was written by a machine whose numbers begin at the other end")
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise source.checkpoint_error(filename, "is truncated or no checkpoint at all") from error
    if not isinstance(package, dict):
        raise source.checkpoint_error(filename, "does not hold what a MusicGen checkpoint holds")
    return package


def _own_order(path: Path) -> bool:
    """Whether a file's bytes are in this machine's order. torch would turn them where they are mapped."""
    with zipfile.ZipFile(path) as file:
        orders = [file.read(name) for name in file.namelist() if name.endswith("/byteorder")]
    return all(order.decode(errors="replace") == sys.byteorder for order in orders)


def _config(source: Source, filename: str, package: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(package.get("best_state"), dict) or not isinstance(package.get("xp.cfg"), str):
        raise source.checkpoint_error(filename, "is not in AudioCraft's released format (best_state and xp.cfg)")
    try:
        # safe_load, so that the file is data; and a reference to anything but another key of it is missing data
        return OmegaConf.create(_without_resolvers(yaml.safe_load(package["xp.cfg"])))
    except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        raise source.checkpoint_error(filename, "has a configuration (xp.cfg) that cannot be read") from error


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


def _text_numbers(source: Source, folder: Path, weights: LMWeights) -> int:
    """How many numbers T5 has, from its configuration."""
    from transformers import T5Config, T5EncoderModel

    try:
        config = T5Config.from_pretrained(folder)
        with _ONE_AT_A_TIME, torch.device("meta"):
            model: Any = T5EncoderModel(config)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise source.checkpoint_error("t5", "cannot be read as a T5 encoder") from error
    if config.d_model != weights.text_weight.shape[1]:
        raise source.checkpoint_error("t5", f"is {config.d_model} wide, and the model was trained with another")
    return _numbers(model)


def _text_encoder(source: Source, folder: Path, device: torch.device) -> tuple[Any, nn.Module]:
    """T5 and its tokenizer: the folder `t5` beside the files, else what the configuration names."""
    from transformers import T5EncoderModel, T5Tokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with _ONE_AT_A_TIME:
            tokenizer = T5Tokenizer.from_pretrained(folder)
            model: Any = T5EncoderModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise source.checkpoint_error("t5", "cannot be read as a T5 encoder") from error
    return tokenizer, model.eval().requires_grad_(False).to(device)


def _numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def _codec(source: Source, config: Any, shape: LMShape, download: DownloadProgress) -> Any:
    """AudioCraft's codec, wrapped for stereo where the language model's configuration says so."""
    package = _read(source, "compression_state_dict.bin", download)
    builders = _builders()
    named = package.get("pretrained")
    codec = _pretrained_codec(source, str(named), download) if named else _built_codec(source, package)
    codec = builders.get_wrapped_compression_model(codec, config)
    if (codec.num_codebooks, codec.cardinality, codec.frame_rate) != (shape.codebooks, shape.codebook_size, FRAME_RATE):
        raise source.checkpoint_error("compression_state_dict.bin", "is the codec of another model")
    return codec.eval().requires_grad_(False)


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
        raise source.checkpoint_error("compression_state_dict.bin", "does not fit its own configuration") from error
    return codec


def _pretrained_codec(source: Source, name: str, download: DownloadProgress) -> Any:
    """Hugging Face's EnCodec in AudioCraft's wrapper."""
    from audiocraft.models.encodec import HFEncodecCompressionModel
    from transformers import EncodecModel

    folder = source.dependency(name, CODEC_FILES, subfolder=name.rsplit("/", 1)[-1], download=download)
    try:
        with _ONE_AT_A_TIME:
            model = EncodecModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise source.checkpoint_error(
            "compression_state_dict.bin", "names a codec that cannot be read as an EnCodec"
        ) from error
    return HFEncodecCompressionModel(model)


@contextmanager
def _understood(source: Source, filename: str) -> Iterator[None]:
    """A configuration that lacks a key or has a value that makes no sense is the file's fault."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (OmegaConfBaseException, AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise source.checkpoint_error(filename, "has a configuration (xp.cfg) that is no MusicGen's") from error


def _builders() -> Any:
    """audiocraft.models.builders; seconds to import, so only where a model is loaded."""
    logging.getLogger("xformers").setLevel(logging.ERROR)  # it warns of kernels that are never used here
    warnings.filterwarnings("ignore", message=".*torch.nn.utils.weight_norm", category=FutureWarning)  # audiocraft's
    try:
        # On a thread that knows nothing: xformers keeps what its import raised, with all frames up from there, and
        # what they hold. From here that would be the first model's files.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(import_module, "audiocraft.models.builders").result()
    except ModuleNotFoundError as error:
        if error.name != "audiocraft":
            raise
        raise LoadFailed(
            "AudioCraft is not installed.",
            hint="`pip install --no-deps audiocraft==1.3.0`: with its dependencies it would bring a torch of 2023.",
        ) from error
