"""Loading: real formats from every place, and every way a file can be wrong."""

from __future__ import annotations

import errno
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from audiocraft.models.encodec import HFEncodecCompressionModel
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from omegaconf import OmegaConf
from transformers import EncodecConfig, EncodecModel

from musicgen_bento.engine import checkpoint, hub
from musicgen_bento.engine.checkpoint import Checkpoint
from musicgen_bento.engine.engine import ModelEngine
from musicgen_bento.errors import BrokenCheckpoint, InvalidRequest, ModelUnavailable, UnknownModel
from tests.checkpoints import write_hub_cache, write_t5
from tests.models import CPU, MONO, PREPEND, STEREO, folder, load, make_one, params

FILES = ["state_dict.bin", "compression_state_dict.bin"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(folder(MONO), tmp_path / "model"))


def loaded(source: Path | str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return checkpoint.load("tiny", str(source), CPU, dtype)


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
    assert (model.sample_rate, model.channels, model.frame_rate, model.hop) == (32_000, 1, 50, 640)
    assert model.weights.shape.text == "cross"


def test_what_a_stereo_and_a_prepending_model_say() -> None:
    assert (load(STEREO).channels, load(STEREO).weights.shape.codebooks) == (2, 8)
    assert load(PREPEND).weights.shape.text == "prepend"
    assert load(PREPEND).weights.layers[0].cross is None


def test_half_precision_files_are_computed_in_float32_on_a_cpu(copy: Path) -> None:
    edit(copy / FILES[0], lambda p: p.update(best_state={k: v.half() for k, v in p["best_state"].items()}))
    assert loaded(copy).weights.heads.dtype == torch.float32


def test_a_pretrained_codec_from_hugging_face(copy: Path, tmp_path: Path) -> None:
    """The codec file may name a codec: `{'pretrained': ...}`."""
    config = EncodecConfig(
        target_bandwidths=[2.2], sampling_rate=32_000, audio_channels=1, normalize=False, num_filters=4,
        upsampling_ratios=[8, 5, 4, 4], codebook_size=2048, use_causal_conv=False, use_conv_shortcut=False,
    )  # fmt: skip
    EncodecModel(config).save_pretrained(tmp_path / "encodec")
    torch.save({"pretrained": str(tmp_path / "encodec")}, copy / FILES[1])
    model = loaded(copy)
    assert isinstance(model.codec, HFEncodecCompressionModel)
    story = make_one(ModelEngine(model, max_slots=1, max_queue=1, deterministic=False), params()).story
    codes = torch.randint(0, 2048, (1, 4, 25))
    assert story.audio.shape == (1, model.codec.decode(codes).shape[-1])


def test_from_the_hubs_cache_with_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and T5 from a cache, by their names on the hub, under AudioCraft's own variable for it."""
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    write_hub_cache(tmp_path, "facebook/musicgen-small", MONO)
    assert hub.is_cached("facebook/musicgen-small", FILES[0])
    assert not hub.is_cached("facebook/musicgen-large", FILES[0])
    assert torch.equal(loaded("facebook/musicgen-small").weights.heads, load(MONO).weights.heads)


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
    with pytest.raises(BrokenCheckpoint, match=name) as error:
        loaded(copy)
    assert "compression_state_dict.bin" in error.value.hint


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, 1_000, 0.5, 0.999])
def test_a_truncated_file_is_named(copy: Path, name: str, keep: float) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(BrokenCheckpoint, match=name):
        loaded(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [[1, 2], {"weights": torch.zeros(3)}, {"best_state": {}, "xp.cfg": 3}, torch.zeros(2)]
)
def test_a_foreign_file_is_named(copy: Path, name: str, content: object) -> None:
    torch.save(content, copy / name)
    with pytest.raises(BrokenCheckpoint, match=name):
        loaded(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("config", ["nonsense: 1", "{", "a: ${b}"])
def test_a_configuration_that_is_none(copy: Path, name: str, config: str) -> None:
    edit(copy / name, lambda package: package.update({"xp.cfg": config}))
    with pytest.raises(BrokenCheckpoint, match=name):
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
    with pytest.raises(BrokenCheckpoint, match=name):
        loaded(copy)
    (copy / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BrokenCheckpoint, match=name):
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
        with pytest.raises(BrokenCheckpoint, match=says):
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
    with pytest.raises(BrokenCheckpoint, match=key.split(".")[0]):
        loaded(copy)


def test_a_melody_model_is_refused_with_a_word_why(copy: Path) -> None:
    edit_config(copy / FILES[0], "conditioners.self_wav", {"model": "chroma_stem"})
    with pytest.raises(InvalidRequest, match="melody"):
        loaded(copy)


def test_the_codec_of_another_model(copy: Path) -> None:
    shutil.copy(folder(STEREO) / FILES[0], copy / FILES[0])
    edit_config(copy / FILES[0], "interleave_stereo_codebooks.use", False)
    with pytest.raises(BrokenCheckpoint, match="codec of another model"):
        loaded(copy)


def test_a_t5_that_is_none(copy: Path) -> None:
    (copy / "t5" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BrokenCheckpoint, match="T5"):
        loaded(copy)


def test_a_t5_of_another_width(copy: Path) -> None:
    shutil.rmtree(copy / "t5")
    write_t5(copy / "t5", replace(MONO, text_dim=32))
    with pytest.raises(BrokenCheckpoint, match="32 wide"):
        loaded(copy)


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


@pytest.mark.parametrize(
    ("failure", "error", "says"),
    [
        (full_disk, ModelUnavailable, "disk is full"),
        (read_only, ModelUnavailable, "cannot be written"),
        (unreachable, ModelUnavailable, "cannot be reached"),
        (no_such_model, UnknownModel, "no model named"),
    ],
)
def test_what_the_hub_says_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, failure: Any, error: type[Exception], says: str
) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", failure)
    monkeypatch.setattr(hub, "snapshot_download", failure)
    for fetch in (
        lambda: hub.fetch("facebook/musicgen-small", FILES[0]),
        lambda: hub.fetch_folder("t5-base", ["config.json", "model.safetensors"]),
    ):
        with pytest.raises(error, match=says) as raised:
            fetch()
        assert raised.value.hint  # type: ignore[attr-defined]


def test_offline_and_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's real client, told to stay offline (tests/conftest.py)."""
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"state_dict.bin of facebook/musicgen-small .* cannot be reached"):
        loaded("facebook/musicgen-small")
