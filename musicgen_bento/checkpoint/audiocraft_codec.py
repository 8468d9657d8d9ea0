"""Opens a model's codec with AudioCraft's builders. The only file that imports audiocraft.

The codec is built on the meta device and its tensors are assigned from the mapped file, so no weight is initialized at
random first. A codec file may instead only name a codec on the hub: `{'pretrained': 'facebook/encodec_32khz'}`.
"""

from __future__ import annotations

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import torch
from safetensors import SafetensorError

from musicgen_bento.checkpoint.download import DownloadProgress
from musicgen_bento.checkpoint.file_format import config_errors, read_config, read_package
from musicgen_bento.checkpoint.source import CODEC_FILES, MODEL_FILES, Source
from musicgen_bento.checkpoint.transformers_lock import TRANSFORMERS_LOCK
from musicgen_bento.errors import LoadFailed
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.model_catalog import FRAME_RATE

_CODEC_FILE = MODEL_FILES[1]


def open_codec(source: Source, config: Any, shape: LMShape, download: DownloadProgress) -> Any:
    """Open the codec: AudioCraft's compression model in eval mode, float32, wrapped for stereo if the model is stereo.

    Args:
        source: the model.
        config: configuration of the language model.
        shape: sizes of the language model, which the codec must fit.
        download: receives the progress, if files are downloaded.

    Raises:
        InvalidCheckpoint: a file is missing or damaged, or the codec does not fit the language model.
        ModelUnavailable: the hub cannot be reached, or the disk is full.
        LoadFailed: AudioCraft is not installed.
    """
    package = read_package(source, _CODEC_FILE, download)
    builders = import_builders()
    reference = package.get("pretrained")
    codec = _open_pretrained(source, str(reference), download) if reference else _build(source, package)
    codec = builders.get_wrapped_compression_model(codec, config)
    if (codec.num_codebooks, codec.cardinality, codec.frame_rate) != (shape.codebooks, shape.codebook_size, FRAME_RATE):
        raise source.checkpoint_error(
            _CODEC_FILE, "does not fit the language model (number of codebooks, codebook size or frame rate)"
        )
    return codec.eval().requires_grad_(False)


def import_builders() -> Any:
    """Import audiocraft.models.builders. The import takes seconds, so it happens when a model is opened.

    Raises:
        LoadFailed: AudioCraft is not installed.
    """
    # xformers warns of missing kernels that are not used here; audiocraft uses a deprecated weight_norm.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*torch.nn.utils.weight_norm", category=FutureWarning)
    try:
        # The import runs in a thread of its own: xformers keeps the exceptions of its import, with all frames of the
        # call stack and their local variables. From this thread that would be the first model's files.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(import_module, "audiocraft.models.builders").result()
    except ModuleNotFoundError as error:
        if error.name != "audiocraft":
            raise
        raise LoadFailed(
            "AudioCraft is not installed.",
            hint="Run `pip install --no-deps audiocraft==1.3.0`; its dependencies would install a torch of 2023.",
        ) from error


def _build(source: Source, package: dict[str, Any]) -> Any:
    """Build the codec from its configuration, with the tensors of the package."""
    config = read_config(source, _CODEC_FILE, package)
    builders = import_builders()
    with config_errors(source, _CODEC_FILE), torch.device("meta"):
        config.device = "meta"
        codec = builders.get_compression_model(config)
    try:
        state = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in package["best_state"].items()
        }
        codec.load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError) as error:
        raise source.checkpoint_error(_CODEC_FILE, "has tensors that do not fit its configuration (xp.cfg)") from error
    return codec


def _open_pretrained(source: Source, name: str, download: DownloadProgress) -> Any:
    """Open Hugging Face's EnCodec of this name, in AudioCraft's wrapper."""
    from audiocraft.models.encodec import HFEncodecCompressionModel
    from transformers import EncodecModel

    folder = source.fetch_dependency(name, CODEC_FILES, subfolder=name.rsplit("/", 1)[-1], download=download)
    try:
        with TRANSFORMERS_LOCK:
            model = EncodecModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise source.checkpoint_error(_CODEC_FILE, "names a codec that cannot be read as an EnCodec") from error
    return HFEncodecCompressionModel(model)
