"""Loads a model from files in AudioCraft's released format.

A model is two files: `state_dict.bin` holds the language model, and `compression_state_dict.bin` the codec. The text
encoder, T5, is a folder beside them, or a repository on the hub.

Loading has two steps. `open_files` fetches the files and checks them without reading the weights; the memory that the
model needs is known then. `build` reads the weights. The language model is never built as torch modules: its tensors
are read from the file by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musicgen_bento.checkpoint.audiocraft_codec import open_codec
from musicgen_bento.checkpoint.download import DownloadProgress
from musicgen_bento.checkpoint.file_format import config_errors, read_config, read_package
from musicgen_bento.checkpoint.lm_state_dict import read_shape, read_weights
from musicgen_bento.checkpoint.source import MODEL_FILES, T5_FILES, T5_SUBFOLDER, Source
from musicgen_bento.checkpoint.t5 import build_meta_text_encoder, load_text_encoder
from musicgen_bento.errors import LoadFailed
from musicgen_bento.lm.factory import Weights
from musicgen_bento.lm.kv_cache.factory import request_kv_bytes
from musicgen_bento.lm.packed_weights import is_supported, pack_weights
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.model_catalog import FRAME_RATE, MAX_PROMPT_TOKENS
from musicgen_bento.native.bindings import MAX_FUSED_TOKENS
from musicgen_bento.native.mmap_tensor import evict_file_pages
from musicgen_bento.precision import FLOAT32, FLOAT32_NATIVE, ModelSize, Precision


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model in memory.

    Attributes:
        name: the model's name in responses.
        weights: weights of the language model.
        tokenizer: tokenizer of the text encoder.
        text_encoder: T5's encoder, float32.
        codec: AudioCraft's compression model, float32, eval mode.
        sample_rate: samples per second and channel.
        channels: 1 or 2.
        frame_rate: frames per second.
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
        """Samples per frame and channel."""
        return self.sample_rate // self.frame_rate

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        modules = (self.text_encoder, self.codec)
        return self.weights.precision.model_bytes(self.weights.size) + sum(
            tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers())
        )


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The checked files of a model on this machine. Their tensors are mapped, not read.

    Attributes:
        source: where the files are.
        shape: sizes of the language model.
        state: tensors of the language model by name, as in the file.
        text_encoder: T5's folder.
        codec: AudioCraft's compression model; its tensors stay in the file until they are used.
        mapped: the files that hold these tensors.
        size: number of parameters of the language model.
        num_float32_params: number of parameters of T5 and the codec, which are float32 in every precision.
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
        """Evict the files' pages from this process's memory; pages that are needed again are read again."""
        for path in self.mapped:
            evict_file_pages(path)

    def model_bytes(self, precision: Precision) -> int:
        """Return the memory of the model, with the language model in this precision."""
        return precision.model_bytes(self.size) + torch.float32.itemsize * self.num_float32_params

    def max_request_bytes(self, precision: Precision, seconds: float) -> int:
        """Return the memory that a request of this duration needs at most while it runs."""
        frames = min(self.shape.window, int(seconds * FRAME_RATE) + 1)
        positions = self.shape.pattern.last_position(frames)
        # In a large model the longest prompt that is fused needs more than the longest prompt, which is not fused.
        return max(
            request_kv_bytes(self.shape, precision, 2, positions, tokens)
            for tokens in (MAX_FUSED_TOKENS, MAX_PROMPT_TOKENS)
        )


def load(source: Source, device: torch.device, precision: Precision) -> Checkpoint:
    """Open the files and build the model; see `open_files` and `build` for the arguments and errors."""
    return build(open_files(source), device, precision)


def open_files(source: Source, download: DownloadProgress | None = None) -> CheckpointFiles:
    """Fetch a model's files and check them. Any thread may call this; downloads run concurrently.

    Args:
        source: the model.
        download: receives the progress, if files are downloaded.

    Raises:
        InvalidCheckpoint: a file is missing, truncated, in another format, or of an unsupported architecture.
        ModelUnavailable: the hub cannot be reached, or the disk is full.
        UnknownModel: the hub has no such repository.
        InvalidRequest: the model needs a melody, which is not supported yet.
        LoadFailed: AudioCraft is not installed.
    """
    download = download or DownloadProgress()
    source.register_downloads(download)
    lm_file = MODEL_FILES[0]
    package = read_package(source, lm_file, download)
    config = read_config(source, lm_file, package)
    with config_errors(source, lm_file):
        shape = read_shape(source, config)
    state = package["best_state"]
    weights = read_weights(source, shape, state, torch.device("meta"), FLOAT32)
    t5_name = str(config.conditioners.description.t5.name)
    t5_folder = source.fetch_dependency(t5_name, T5_FILES, subfolder=T5_SUBFOLDER, download=download)
    text_encoder = build_meta_text_encoder(source, t5_folder, weights.text_weight.shape[1])
    codec = open_codec(source, config, shape, download)
    return CheckpointFiles(
        source=source,
        shape=shape,
        state=state,
        text_encoder=t5_folder,
        codec=codec,
        mapped=tuple(source.fetch_file(name, download) for name in MODEL_FILES),
        size=weights.size,
        num_float32_params=_num_params(text_encoder) + _num_params(codec),
    )


def build(files: CheckpointFiles, device: torch.device, precision: Precision) -> Checkpoint:
    """Read a model into memory. Any thread may call this; only one at a time loads its T5.

    Args:
        files: the model's files.
        device: device of the model.
        precision: precision of the language model.

    Raises:
        InvalidCheckpoint: a file cannot be read.
        LoadFailed: the C kernel does not support the model's sizes.
    """
    weights = load_weights(files, device, precision)
    tokenizer, text_encoder = load_text_encoder(files.source, files.text_encoder, device)
    codec = files.codec.to(device)
    torch.backends.cudnn.allow_tf32 = False  # with TF32, streamed samples would differ from the whole clip by 1e-3
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
    """Read the language model's weights; see `build` for the arguments.

    Raises:
        LoadFailed: the C kernel does not support the model's sizes.
    """
    if precision == FLOAT32_NATIVE and not is_supported(files.shape):
        precision = FLOAT32
    weights = read_weights(files.source, files.shape, files.state, device, precision)
    if not precision.native_kernel:
        return weights
    if not is_supported(files.shape):
        raise LoadFailed(
            f"{precision.name} does not support the head or layer sizes of {files.source.name} on this machine.",
            hint="Set MUSICGEN_PRECISION=float32.",
            field="model",
        )
    return pack_weights(weights, files.release_pages)


def check_text_encoder(files: CheckpointFiles) -> None:
    """Check that T5 and its tokenizer can be read; `open_files` checks T5's configuration only.

    Raises:
        InvalidCheckpoint: the files cannot be read.
    """
    load_text_encoder(files.source, files.text_encoder, torch.device("cpu"))


def _num_params(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
