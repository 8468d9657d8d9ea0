"""Loading released formats from a folder and from the hub's cache, and the errors of damaged or unsupported files."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from audiocraft.models.encodec import HFEncodecCompressionModel
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from omegaconf import OmegaConf
from transformers import EncodecConfig, EncodecModel

from musicgen_bento.checkpoint import audiocraft_codec, loading, source
from musicgen_bento.checkpoint.loading import Checkpoint
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.engine import Engine
from musicgen_bento.errors import InvalidCheckpoint, InvalidRequest, LoadFailed, ModelUnavailable, UnknownModel
from musicgen_bento.precision import FLOAT32, Precision
from tests.support.tiny_checkpoints import write_hub_cache, write_t5
from tests.support.tiny_models import CPU, MONO, PREPEND, STEREO, folder, load, params, run_request

LM_FILE, CODEC_FILE = FILES = "state_dict.bin", "compression_state_dict.bin"


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, for a test to damage."""
    return Path(shutil.copytree(folder(MONO), tmp_path / "model"))


def load_model(location: Path | str, precision: Precision = FLOAT32) -> Checkpoint:
    return loading.load(Source("tiny", location), CPU, precision)


def edit_package(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a checkpoint file."""
    package = torch.load(file, weights_only=True)
    change(package)
    torch.save(package, file)


def edit_config(file: Path, key: str, value: object) -> None:
    """Set one value of a checkpoint file's configuration."""

    def change(package: dict[str, Any]) -> None:
        config = OmegaConf.create(package["xp.cfg"])
        OmegaConf.update(config, key, value, force_add=True)
        package["xp.cfg"] = OmegaConf.to_yaml(config)

    edit_package(file, change)


# ---- valid models


def test_a_mono_model_has_the_released_properties() -> None:
    model = load(MONO)
    assert (model.sample_rate, model.channels, model.frame_rate, model.hop_length) == (32_000, 1, 50, 640)
    assert model.weights.shape.text_conditioning == "cross"


def test_stereo_and_prepending_models_load() -> None:
    assert (load(STEREO).channels, load(STEREO).weights.shape.codebooks) == (2, 8)
    assert load(PREPEND).weights.shape.text_conditioning == "prepend"
    assert load(PREPEND, FLOAT32).weights.layers[0].cross is None


def test_float16_files_load_as_float32_on_a_cpu(model_copy: Path) -> None:
    edit_package(model_copy / LM_FILE, lambda p: p.update(best_state={k: v.half() for k, v in p["best_state"].items()}))
    assert load_model(model_copy).weights.embeddings.dtype == torch.float32


def test_a_codec_file_may_name_a_hugging_face_codec(model_copy: Path) -> None:
    config = EncodecConfig(
        target_bandwidths=[2.2], sampling_rate=32_000, audio_channels=1, normalize=False, num_filters=4,
        upsampling_ratios=[8, 5, 4, 4], codebook_size=2048, use_causal_conv=False, use_conv_shortcut=False,
    )  # fmt: skip
    EncodecModel(config).save_pretrained(model_copy / "encodec_32khz")  # beside the files, like t5
    torch.save({"pretrained": "facebook/encodec_32khz"}, model_copy / CODEC_FILE)
    model = load_model(model_copy)
    assert isinstance(model.codec, HFEncodecCompressionModel)
    events = run_request(Engine(model, max_slots=1, max_queue=1, deterministic=False), params()).events
    codes = torch.randint(0, 2048, (1, 4, 25))
    assert events.audio.shape == (1, model.codec.decode(codes).shape[-1])


def test_a_model_loads_from_the_hub_cache_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's folder is set by AudioCraft's own environment variable."""
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    write_hub_cache(tmp_path, "facebook/musicgen-small", MONO)
    assert source.is_cached("facebook/musicgen-small", LM_FILE)
    assert not source.is_cached("facebook/musicgen-large", LM_FILE)
    assert torch.equal(load_model("facebook/musicgen-small").weights.embeddings, load(MONO).weights.embeddings)


def test_a_cached_model_without_t5_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    write_hub_cache(tmp_path, "facebook/musicgen-small", MONO)
    shutil.rmtree(tmp_path / "models--t5-base")
    with pytest.raises(ModelUnavailable, match="t5-base is not in the cache"):
        load_model("facebook/musicgen-small")


# ---- invalid models


@pytest.mark.parametrize("name", FILES)
def test_the_error_names_a_missing_file(model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    with pytest.raises(InvalidCheckpoint, match=name) as error:
        load_model(model_copy)
    assert "compression_state_dict.bin" in error.value.hint


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 1, 1_000, 0.5, 0.999])
def test_the_error_names_a_truncated_file(model_copy: Path, name: str, kept: float) -> None:
    """`kept` is the fraction of the file that remains, or its number of bytes."""
    content = (model_copy / name).read_bytes()
    (model_copy / name).write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(InvalidCheckpoint, match=name):
        load_model(model_copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [[1, 2], {"weights": torch.zeros(3)}, {"best_state": {}, "xp.cfg": 3}, torch.zeros(2)]
)
def test_the_error_names_a_file_of_another_format(model_copy: Path, name: str, content: object) -> None:
    torch.save(content, model_copy / name)
    with pytest.raises(InvalidCheckpoint, match=name):
        load_model(model_copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("config", ["nonsense: 1", "{", "a: ${b}"])
def test_an_invalid_configuration_is_refused(model_copy: Path, name: str, config: str) -> None:
    edit_package(model_copy / name, lambda package: package.update({"xp.cfg": config}))
    with pytest.raises(InvalidCheckpoint, match=name):
        load_model(model_copy)


class CodeInPickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("name", FILES)
def test_code_in_a_pickle_is_not_executed(
    model_copy: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"best_state": {}, "xp.cfg": CodeInPickle()}, model_copy / name)
    with pytest.raises(InvalidCheckpoint, match=name):
        load_model(model_copy)
    (model_copy / name).write_bytes(pickle.dumps(CodeInPickle()))
    with pytest.raises(InvalidCheckpoint, match=name):
        load_model(model_copy)
    assert not Path("executed").exists()


def test_missing_extra_and_misshapen_tensors_are_refused(model_copy: Path) -> None:
    original = (model_copy / LM_FILE).read_bytes()
    for change, message in (
        (lambda state: state.pop("out_norm.bias"), "has no tensor out_norm.bias"),
        (lambda state: state.update({"extra.weight": torch.zeros(1)}), "has a tensor extra.weight"),
        (
            lambda state: state.update({"out_norm.bias": torch.zeros(3)}),
            r"out_norm.bias of size \[3\] instead of \[64\]",
        ),
        (lambda state: state.clear(), "has no tensor"),
    ):
        (model_copy / LM_FILE).write_bytes(original)
        edit_package(model_copy / LM_FILE, lambda package, change=change: change(package["best_state"]))
        with pytest.raises(InvalidCheckpoint, match=message):
            load_model(model_copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lm_model", "transformer_lm_magnet"),
        ("transformer_lm.norm_first", False),
        ("transformer_lm.activation", "relu"),
        ("transformer_lm.kv_repeat", 2),
        ("transformer_lm.bias_ff", True),
        ("transformer_lm.positional_embedding", "rope"),
        ("codebooks_pattern.modeling", "parallel"),
        ("codebooks_pattern.delay.flatten_first", 3),
        ("fuser.cross_attention_pos_emb", True),
        ("fuser.sum", ["description"]),
        ("fuser.cross", []),
        ("conditioners.description.t5.normalize_text", True),
    ],
)
def test_an_unsupported_architecture_is_refused(model_copy: Path, key: str, value: object) -> None:
    """The engine would compute such a model wrongly, so it must not load."""
    edit_config(model_copy / LM_FILE, key, value)
    with pytest.raises(InvalidCheckpoint, match="differs from every released MusicGen in"):
        load_model(model_copy)


def test_a_melody_model_is_refused_with_the_reason(model_copy: Path) -> None:
    edit_config(model_copy / LM_FILE, "conditioners.self_wav", {"model": "chroma_stem"})
    with pytest.raises(InvalidRequest, match="melody"):
        load_model(model_copy)


def test_a_codec_that_does_not_fit_the_language_model_is_refused(model_copy: Path) -> None:
    shutil.copy(folder(STEREO) / LM_FILE, model_copy / LM_FILE)
    edit_config(model_copy / LM_FILE, "interleave_stereo_codebooks.use", False)
    with pytest.raises(InvalidCheckpoint, match="does not fit the language model"):
        load_model(model_copy)


def test_an_unreadable_t5_is_refused(model_copy: Path) -> None:
    (model_copy / "t5" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InvalidCheckpoint, match="T5"):
        load_model(model_copy)


def test_a_t5_of_another_width_is_refused(model_copy: Path) -> None:
    shutil.rmtree(model_copy / "t5")
    write_t5(model_copy / "t5", replace(MONO, text_dim=32))
    with pytest.raises(InvalidCheckpoint, match="t5 of tiny has width 32, but the language model needs 64"):
        load_model(model_copy)


CONTRADICTORY_SIZES = [
    ("dataset.segment_duration", 0.01),
    ("dataset.segment_duration", -3),
    ("transformer_lm.num_heads", 7),
    ("transformer_lm.num_layers", 0),
    ("transformer_lm", "hello"),
    ("codebooks_pattern.delay.delays", [0, 1]),
    ("codebooks_pattern.delay.delays", [3, 2, 1, 0]),
]


@pytest.mark.parametrize(("key", "value"), CONTRADICTORY_SIZES)
def test_contradictory_sizes_are_refused(model_copy: Path, key: str, value: object) -> None:
    edit_config(model_copy / LM_FILE, key, value)
    with pytest.raises(InvalidCheckpoint, match=r"state_dict\.bin of tiny has a"):
        load_model(model_copy)


def test_missing_configuration_keys_have_audiocrafts_defaults(model_copy: Path) -> None:
    def change(package: dict[str, Any]) -> None:
        config = OmegaConf.create(package["xp.cfg"])
        for key in ("kv_repeat", "qk_layer_norm", "qk_layer_norm_cross", "layer_scale", "past_context", "norm"):
            del config.transformer_lm[key]
        del config.fuser["cross_attention_pos_emb"]
        package["xp.cfg"] = OmegaConf.to_yaml(config)

    edit_package(model_copy / LM_FILE, change)
    assert load_model(model_copy).weights.shape == load(MONO).weights.shape


@pytest.mark.parametrize("reference", ["${oc.env:SECRET}", "a ${oc.decode:${oc.env:SECRET}}", "${${x}:SECRET}"])
def test_a_configuration_cannot_read_the_environment(
    model_copy: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for key in ("transformer_lm.activation", "conditioners.description.t5.name"):
        edit_config(model_copy / LM_FILE, key, reference)
        shutil.rmtree(model_copy / "t5", ignore_errors=True)
        with pytest.raises(InvalidCheckpoint) as error:
            load_model(model_copy)
        assert "hunter2" not in str(error.value)


def test_a_configuration_may_reference_its_own_keys(model_copy: Path) -> None:
    edit_config(model_copy / LM_FILE, "transformer_lm.card", "${rvq.bins}")
    assert load_model(model_copy).weights.shape.codebook_size == 2048


def test_a_hub_id_never_resolves_to_a_folder(model_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_copy, tmp_path / "facebook" / "musicgen-small")
    with pytest.raises(ModelUnavailable):
        load_model("facebook/musicgen-small")


def test_errors_name_the_model_but_not_its_folder(model_copy: Path) -> None:
    (model_copy / LM_FILE).write_bytes(b"")
    with pytest.raises(InvalidCheckpoint) as error:
        load_model(model_copy)
    assert "state_dict.bin of tiny" in error.value.message
    assert str(model_copy) not in str(error.value)


def test_models_load_concurrently(tmp_path: Path) -> None:
    """transformers builds one model at a time: without a lock, concurrent loads give models without weights."""
    copies = [shutil.copytree(folder(MONO), tmp_path / str(number)) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for model in threads.map(load_model, copies):
                assert not any(tensor.is_meta for tensor in model.text_encoder.parameters())
                assert torch.equal(model.text_encoder.shared.weight, load(MONO).text_encoder.shared.weight)


def test_without_audiocraft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "audiocraft" or name.startswith("audiocraft.")]:
        monkeypatch.delitem(sys.modules, name)

    class AudiocraftHider:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "audiocraft":
                raise ModuleNotFoundError("No module named 'audiocraft'", name="audiocraft")

    monkeypatch.setattr(sys, "meta_path", [AudiocraftHider(), *sys.meta_path])
    with pytest.raises(LoadFailed, match="pip install --no-deps audiocraft"):
        audiocraft_codec.import_builders()


# ---- the hub


def disk_full(*_: object, **__: object) -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


def permission_denied(*_: object, **__: object) -> str:
    raise PermissionError(errno.EACCES, "Permission denied")


def not_in_cache(*_: object, **__: object) -> str:
    raise LocalEntryNotFoundError("cannot reach")


def repository_not_found(*_: object, **__: object) -> str:
    import httpx

    raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "http://hub")))


def connection_closed(*_: object, **__: object) -> str:
    import httpx

    raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


@pytest.mark.parametrize(
    ("failure", "error_type", "message"),
    [
        (disk_full, ModelUnavailable, "disk is full"),
        (permission_denied, ModelUnavailable, "cannot be written"),
        (not_in_cache, ModelUnavailable, "could not be fetched"),
        (connection_closed, ModelUnavailable, "could not be fetched"),
        (repository_not_found, UnknownModel, "no model named"),
    ],
)
def test_errors_of_the_hub_client_are_translated(
    monkeypatch: pytest.MonkeyPatch, failure: Any, error_type: type[Exception], message: str
) -> None:
    monkeypatch.setattr(source, "hf_hub_download", failure)
    monkeypatch.setattr(source, "snapshot_download", failure)
    model = Source("small", "facebook/musicgen-small")
    for fetch in (
        lambda: model.fetch_file(LM_FILE),
        lambda: model.fetch_dependency("t5-base", ["config.json", "model.safetensors"], subfolder="t5"),
    ):
        with pytest.raises(error_type, match=message) as raised:
            fetch()
        assert raised.value.hint  # type: ignore[attr-defined]


class _InterruptingHub(BaseHTTPRequestHandler):
    """Serves one file by the hub's protocol, and closes the connection after 500 of its bytes."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in (("X-Repo-Commit", "0" * 40), ("ETag", '"abc"'), ("Content-Length", "100000")):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"x" * 500)

    def log_message(self, *_: object) -> None:
        pass


def test_an_interrupted_download_is_reported_as_unavailable(tmp_path: Path) -> None:
    """The real hub client runs in a process of its own, because it reads its settings when it is imported."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _InterruptingHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = (
        "from musicgen_bento.checkpoint.source import Source\n"
        "try: Source('small', 'facebook/musicgen-small').fetch_file('state_dict.bin')\n"
        "except Exception as error: print(type(error).__name__, error, error.retry_after)"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    server.shutdown()
    server.server_close()
    assert process.stdout.startswith("ModelUnavailable state_dict.bin of facebook/musicgen-small is not in the cache")
    assert process.stdout.strip().endswith("30.0")


def test_an_uncached_model_is_unavailable_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real hub client is offline (tests/conftest.py)."""
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"state_dict.bin of facebook/musicgen-small .* could not be fetched"):
        load_model("facebook/musicgen-small")
