"""Loading: real formats from every place, and every way a file can be wrong."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
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

from musicgen_bento.checkpoint import loading, source
from musicgen_bento.checkpoint.loading import Checkpoint
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.engine import Engine
from musicgen_bento.errors import InvalidCheckpoint, InvalidRequest, LoadFailed, ModelUnavailable, UnknownModel
from musicgen_bento.precision import FLOAT32, Precision
from tests.support.tiny_checkpoints import write_hub_cache, write_t5
from tests.support.tiny_models import CPU, MONO, PREPEND, STEREO, folder, load, make_one, params

FILES = ["state_dict.bin", "compression_state_dict.bin"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(folder(MONO), tmp_path / "model"))


def loaded(source: Path | str, precision: Precision = FLOAT32) -> Checkpoint:
    return loading.load(Source("tiny", source), CPU, precision)


def edit(file: Path, change: Any) -> None:
    package = torch.load(file, weights_only=True)
    change(package)
    torch.save(package, file)


def edit_config(file: Path, key: str, value: object) -> None:
    def change(package: dict[str, Any]) -> None:
        config = OmegaConf.create(package["xp.cfg"])
        OmegaConf.update(config, key, value, force_add=True)
        package["xp.cfg"] = OmegaConf.to_yaml(config)

    edit(file, change)


# ---- what loads


def test_what_a_mono_model_says_of_itself() -> None:
    model = load(MONO)
    assert (model.sample_rate, model.channels, model.frame_rate, model.hop_length) == (32_000, 1, 50, 640)
    assert model.weights.shape.text_conditioning == "cross"


def test_what_a_stereo_and_a_prepending_model_say() -> None:
    assert (load(STEREO).channels, load(STEREO).weights.shape.codebooks) == (2, 8)
    assert load(PREPEND).weights.shape.text_conditioning == "prepend"
    assert load(PREPEND, FLOAT32).weights.layers[0].cross is None


def test_half_precision_files_are_computed_in_float32_on_a_cpu(copy: Path) -> None:
    edit(copy / FILES[0], lambda p: p.update(best_state={k: v.half() for k, v in p["best_state"].items()}))
    assert loaded(copy).weights.embeddings.dtype == torch.float32


def test_a_pretrained_codec_from_hugging_face(copy: Path) -> None:
    """The codec file may name a codec: `{'pretrained': ...}`."""
    config = EncodecConfig(
        target_bandwidths=[2.2], sampling_rate=32_000, audio_channels=1, normalize=False, num_filters=4,
        upsampling_ratios=[8, 5, 4, 4], codebook_size=2048, use_causal_conv=False, use_conv_shortcut=False,
    )  # fmt: skip
    EncodecModel(config).save_pretrained(copy / "encodec_32khz")  # beside the files, as t5 is
    torch.save({"pretrained": "facebook/encodec_32khz"}, copy / FILES[1])
    model = loaded(copy)
    assert isinstance(model.codec, HFEncodecCompressionModel)
    story = make_one(Engine(model, max_slots=1, max_queue=1, deterministic=False), params()).story
    codes = torch.randint(0, 2048, (1, 4, 25))
    assert story.audio.shape == (1, model.codec.decode(codes).shape[-1])


def test_from_the_hubs_cache_with_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and T5 from a cache, by their names on the hub, under AudioCraft's own variable for it."""
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    write_hub_cache(tmp_path, "facebook/musicgen-small", MONO)
    assert source.is_cached("facebook/musicgen-small", FILES[0])
    assert not source.is_cached("facebook/musicgen-large", FILES[0])
    assert torch.equal(loaded("facebook/musicgen-small").weights.embeddings, load(MONO).weights.embeddings)


def test_a_cached_model_without_its_t5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    write_hub_cache(tmp_path, "facebook/musicgen-small", MONO)
    shutil.rmtree(tmp_path / "models--t5-base")
    with pytest.raises(ModelUnavailable, match="t5-base is not in the cache"):
        loaded("facebook/musicgen-small")


# ---- what does not


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(InvalidCheckpoint, match=name) as error:
        loaded(copy)
    assert "compression_state_dict.bin" in error.value.hint


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, 1_000, 0.5, 0.999])
def test_a_truncated_file_is_named(copy: Path, name: str, keep: float) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(InvalidCheckpoint, match=name):
        loaded(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [[1, 2], {"weights": torch.zeros(3)}, {"best_state": {}, "xp.cfg": 3}, torch.zeros(2)]
)
def test_a_foreign_file_is_named(copy: Path, name: str, content: object) -> None:
    torch.save(content, copy / name)
    with pytest.raises(InvalidCheckpoint, match=name):
        loaded(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("config", ["nonsense: 1", "{", "a: ${b}"])
def test_a_configuration_that_is_none(copy: Path, name: str, config: str) -> None:
    edit(copy / name, lambda package: package.update({"xp.cfg": config}))
    with pytest.raises(InvalidCheckpoint, match=name):
        loaded(copy)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_that_runs_code_does_not_run(
    copy: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"best_state": {}, "xp.cfg": Bomb()}, copy / name)
    with pytest.raises(InvalidCheckpoint, match=name):
        loaded(copy)
    (copy / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InvalidCheckpoint, match=name):
        loaded(copy)
    assert not Path("exploded").exists()


def test_tensors_that_are_missing_left_over_or_of_another_size(copy: Path) -> None:
    original = (copy / FILES[0]).read_bytes()
    for change, says in (
        (lambda state: state.pop("out_norm.bias"), "has no tensor out_norm.bias"),
        (lambda state: state.update({"extra.weight": torch.zeros(1)}), "has a tensor extra.weight"),
        (lambda state: state.update({"out_norm.bias": torch.zeros(3)}), r"out_norm.bias of size \[3\], not \[64\]"),
        (lambda state: state.clear(), "has no tensor"),
    ):
        (copy / FILES[0]).write_bytes(original)
        edit(copy / FILES[0], lambda package, change=change: change(package["best_state"]))
        with pytest.raises(InvalidCheckpoint, match=says):
            loaded(copy)


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
def test_a_model_built_otherwise_is_refused_by_what_it_is(copy: Path, key: str, value: object) -> None:
    """A checkpoint this engine would run wrongly must not run at all."""
    edit_config(copy / FILES[0], key, value)
    with pytest.raises(InvalidCheckpoint, match="than every released MusicGen"):
        loaded(copy)


def test_a_melody_model_is_refused_with_a_word_why(copy: Path) -> None:
    edit_config(copy / FILES[0], "conditioners.self_wav", {"model": "chroma_stem"})
    with pytest.raises(InvalidRequest, match="melody"):
        loaded(copy)


def test_the_codec_of_another_model(copy: Path) -> None:
    shutil.copy(folder(STEREO) / FILES[0], copy / FILES[0])
    edit_config(copy / FILES[0], "interleave_stereo_codebooks.use", False)
    with pytest.raises(InvalidCheckpoint, match="codec of another model"):
        loaded(copy)


def test_a_t5_that_is_none(copy: Path) -> None:
    (copy / "t5" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InvalidCheckpoint, match="T5"):
        loaded(copy)


def test_a_t5_of_another_width(copy: Path) -> None:
    shutil.rmtree(copy / "t5")
    write_t5(copy / "t5", replace(MONO, text_dim=32))
    with pytest.raises(InvalidCheckpoint, match="32 wide"):
        loaded(copy)


SIZES = [
    ("dataset.segment_duration", 0.01),
    ("dataset.segment_duration", -3),
    ("transformer_lm.num_heads", 7),
    ("transformer_lm.num_layers", 0),
    ("transformer_lm", "hello"),
    ("codebooks_pattern.delay.delays", [0, 1]),
    ("codebooks_pattern.delay.delays", [3, 2, 1, 0]),
]


@pytest.mark.parametrize(("key", "value"), SIZES)
def test_sizes_that_do_not_go_together(copy: Path, key: str, value: object) -> None:
    edit_config(copy / FILES[0], key, value)
    with pytest.raises(InvalidCheckpoint, match=r"state_dict\.bin of tiny has a"):
        loaded(copy)


def test_keys_that_older_releases_lack_have_audiocrafts_defaults(copy: Path) -> None:
    def change(package: dict[str, Any]) -> None:
        config = OmegaConf.create(package["xp.cfg"])
        for key in ("kv_repeat", "qk_layer_norm", "qk_layer_norm_cross", "layer_scale", "past_context", "norm"):
            del config.transformer_lm[key]
        del config.fuser["cross_attention_pos_emb"]
        package["xp.cfg"] = OmegaConf.to_yaml(config)

    edit(copy / FILES[0], change)
    assert loaded(copy).weights.shape == load(MONO).weights.shape


@pytest.mark.parametrize("reference", ["${oc.env:SECRET}", "a ${oc.decode:${oc.env:SECRET}}", "${${x}:SECRET}"])
def test_a_configuration_cannot_read_the_environment(
    copy: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for key in ("transformer_lm.activation", "conditioners.description.t5.name"):
        edit_config(copy / FILES[0], key, reference)
        shutil.rmtree(copy / "t5", ignore_errors=True)
        with pytest.raises(InvalidCheckpoint) as error:
            loaded(copy)
        assert "hunter2" not in str(error.value)


def test_a_configuration_may_refer_to_itself(copy: Path) -> None:
    edit_config(copy / FILES[0], "transformer_lm.card", "${rvq.bins}")
    assert loaded(copy).weights.shape.codebook_size == 2048


def test_a_folder_beside_the_server_is_not_taken_for_a_hub_id(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(copy, tmp_path / "facebook" / "musicgen-small")
    with pytest.raises(ModelUnavailable):
        loaded("facebook/musicgen-small")


def test_errors_name_the_model_and_no_folder(copy: Path) -> None:
    (copy / FILES[0]).write_bytes(b"")
    with pytest.raises(InvalidCheckpoint) as error:
        loaded(copy)
    assert "state_dict.bin of tiny" in error.value.message
    assert str(copy) not in str(error.value)


def test_several_at_once(tmp_path: Path) -> None:
    """transformers builds one model at a time; two threads must not leave each other without weights."""
    copies = [shutil.copytree(folder(MONO), tmp_path / str(number)) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for model in threads.map(loaded, copies):
                assert not any(tensor.is_meta for tensor in model.text_encoder.parameters())
                assert torch.equal(model.text_encoder.shared.weight, load(MONO).text_encoder.shared.weight)


def test_without_audiocraft_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "audiocraft" or name.startswith("audiocraft.")]:
        monkeypatch.delitem(sys.modules, name)

    class Hidden:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "audiocraft":
                raise ModuleNotFoundError("No module named 'audiocraft'", name="audiocraft")

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(LoadFailed, match="pip install --no-deps audiocraft"):
        loading._builders()


# ---- the hub


def full_disk(*_: object, **__: object) -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


def read_only(*_: object, **__: object) -> str:
    raise PermissionError(errno.EACCES, "Permission denied")


def unreachable(*_: object, **__: object) -> str:
    raise LocalEntryNotFoundError("cannot reach")


def no_such_model(*_: object, **__: object) -> str:
    import httpx

    raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "http://hub")))


def broken_off(*_: object, **__: object) -> str:
    import httpx

    raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


@pytest.mark.parametrize(
    ("failure", "error", "says"),
    [
        (full_disk, ModelUnavailable, "disk is full"),
        (read_only, ModelUnavailable, "cannot be written"),
        (unreachable, ModelUnavailable, "could not be fetched"),
        (broken_off, ModelUnavailable, "could not be fetched"),
        (no_such_model, UnknownModel, "no model named"),
    ],
)
def test_what_the_hub_says_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, failure: Any, error: type[Exception], says: str
) -> None:
    monkeypatch.setattr(source, "hf_hub_download", failure)
    monkeypatch.setattr(source, "snapshot_download", failure)
    small = Source("small", "facebook/musicgen-small")
    for fetch in (
        lambda: small.file(FILES[0]),
        lambda: small.dependency("t5-base", ["config.json", "model.safetensors"], subfolder="t5"),
    ):
        with pytest.raises(error, match=says) as raised:
            fetch()
        assert raised.value.hint  # type: ignore[attr-defined]


class _HalfAHub(BaseHTTPRequestHandler):
    """Speaks the hub's protocol for one file, and closes the connection in the middle of it."""

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


def test_a_download_that_breaks_off(tmp_path: Path) -> None:
    """The hub's real client in a process of its own, because it reads its settings when it is imported."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _HalfAHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = (
        "from musicgen_bento.engine.hub import Source\n"
        "try: Source('small', 'facebook/musicgen-small').file('state_dict.bin')\n"
        "except Exception as error: print(type(error).__name__, error, error.retry_after)"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    server.shutdown()
    server.server_close()
    assert done.stdout.startswith("ModelUnavailable state_dict.bin of facebook/musicgen-small is not in the cache")
    assert done.stdout.strip().endswith("30.0")


def test_offline_and_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's real client, told to stay offline (tests/conftest.py)."""
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"state_dict.bin of facebook/musicgen-small .* could not be fetched"):
        loaded("facebook/musicgen-small")
