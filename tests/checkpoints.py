"""Writes random checkpoints in AudioCraft's released format, tiny by default, for the real loader to load."""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch
from audiocraft.models import builders
from audiocraft.modules.conditioners import T5Conditioner
from omegaconf import OmegaConf
from transformers import T5Config, T5EncoderModel, T5Tokenizer

PROMPTS = [
    "epic orchestral cinematic score",
    "dark ambient techno loop with heavy bass",
    "lofi hip hop beat calm piano",
]


@dataclass(frozen=True)
class Recipe:
    """What kind of MusicGen to write. The defaults make one of a few hundred kilobytes."""

    dim: int = 64
    heads: int = 4
    layers: int = 2
    filters: int = 4
    latent: int = 128
    text_dim: int = 64
    text_layers: int = 2
    text_heads: int = 4
    text_hidden: int = 128
    text_vocab: int = 128
    window: float = 30
    stereo: bool = False
    prepend: bool = False
    half: bool = False
    half_codec: bool = False
    seed: int = 0


# As large as facebook/musicgen-small, with EnCodec and T5 at their released sizes: 2 GB.
SMALL = Recipe(
    dim=1024,
    heads=16,
    layers=24,
    filters=64,
    text_dim=768,
    text_layers=12,
    text_heads=12,
    text_hidden=3072,
    text_vocab=32128,
    half=True,
)


def write(folder: Path, recipe: Recipe = Recipe()) -> Path:
    """Write `state_dict.bin`, `compression_state_dict.bin` and `t5/` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    write_t5(folder / "t5", recipe)
    T5Conditioner.MODELS.append(str(folder / "t5"))
    T5Conditioner.MODELS_DIMS[str(folder / "t5")] = recipe.text_dim
    config = configuration(recipe, str(folder / "t5"))
    lm, codec = builders.get_lm_model(config), build_codec(config)
    pack(folder / "state_dict.bin", lm.state_dict(), config, half=recipe.half)
    pack(folder / "compression_state_dict.bin", codec.state_dict(), config, half=recipe.half_codec)
    return folder


def build_codec(config: Any) -> Any:
    """A random codec whose codebooks are as if k-means had run: they start at zero unless it has."""
    codec = builders.get_compression_model(config)
    for module in codec.modules():
        if hasattr(module, "embed") and hasattr(module, "inited"):
            module.embed.data.normal_()
            module.inited.data.fill_(1)
    return codec


def pack(file: Path, state: dict[str, torch.Tensor], config: Any, *, half: bool) -> None:
    """Write one file of the released format."""
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    package = {"best_state": state, "xp.cfg": OmegaConf.to_yaml(config), "version": "1.3.0", "exported": True}
    torch.save(package, file)


def write_hub_cache(cache: Path, repo: str, recipe: Recipe) -> None:
    """Write a model into a hub cache under its name there, and T5 as t5-base."""
    folder = write(snapshot(cache, repo), recipe)
    shutil.move(folder / "t5", snapshot(cache, "t5-base"))
    package = torch.load(folder / "state_dict.bin", weights_only=True)
    package["xp.cfg"] = package["xp.cfg"].replace(str(folder / "t5"), "t5-base")
    torch.save(package, folder / "state_dict.bin")


def snapshot(cache: Path, repo: str) -> Path:
    """Where the hub's client looks for a repository's files."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0123456789abcdef")
    (home / "snapshots").mkdir()
    return home / "snapshots" / "0123456789abcdef"


def write_t5(folder: Path, recipe: Recipe) -> None:
    """A small T5 encoder with a tokenizer trained on a few lines."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 20),
        model_writer=model,
        vocab_size=100,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = spm.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(folder)
    config = T5Config(
        vocab_size=recipe.text_vocab,
        d_model=recipe.text_dim,
        d_kv=recipe.text_dim // recipe.text_heads,
        d_ff=recipe.text_hidden,
        num_layers=recipe.text_layers,
        num_heads=recipe.text_heads,
    )
    T5EncoderModel(config).save_pretrained(folder)


def configuration(recipe: Recipe, t5: str) -> Any:
    """The keys that AudioCraft's builders read, with the released text-to-music values."""
    codebooks = 8 if recipe.stereo else 4
    delays = [k // 2 for k in range(8)] if recipe.stereo else [0, 1, 2, 3]
    fuse = {"prepend": ["description"], "cross": []} if recipe.prepend else {"prepend": [], "cross": ["description"]}
    lm = {
        **dict(dim=recipe.dim, num_heads=recipe.heads, num_layers=recipe.layers, hidden_scale=4, n_q=codebooks),
        **dict(card=2048, dropout=0.0, emb_lr=None, activation="gelu", norm_first=True, bias_ff=False),
        **dict(bias_attn=False, bias_proj=False, past_context=None, causal=True, custom=False),
        **dict(memory_efficient=True, attention_as_float32=False, layer_scale=None, positional_embedding="sin"),
        **dict(xpos=False, checkpointing="none", weight_init="gaussian", depthwise_init="current"),
        **dict(zero_bias_init=True, norm="layer_norm", cross_attention=False, qk_layer_norm=False),
        **dict(qk_layer_norm_cross=False, attention_dropout=None, kv_repeat=1, two_step_cfg=False),
    }
    seanet = {
        **dict(dimension=recipe.latent, channels=1, causal=False, n_filters=recipe.filters, n_residual_layers=1),
        **dict(ratios=[8, 5, 4, 4], activation="ELU", activation_params={"alpha": 1.0}, norm="weight_norm"),
        **dict(norm_params={}, kernel_size=7, residual_kernel_size=3, last_kernel_size=7, dilation_base=2),
        **dict(pad_mode="constant", true_skip=True, compress=2, lstm=2, disable_norm_outer_blocks=0),
        **dict(decoder=dict(trim_right_ratio=1.0, final_activation=None, final_activation_params=None), encoder={}),
    }
    rvq = {
        **dict(n_q=4, q_dropout=False, bins=2048, decay=0.99, kmeans_init=False, kmeans_iters=50),
        **dict(threshold_ema_dead_code=2, orthogonal_reg_weight=0.0, orthogonal_reg_active_codes_only=False),
    }
    return OmegaConf.create(
        {
            "device": "cpu",
            "dtype": "float32",
            "lm_model": "transformer_lm",
            "compression_model": "encodec",
            "sample_rate": 32000,
            "channels": 2 if recipe.stereo else 1,
            "dataset": {"segment_duration": recipe.window},
            "codebooks_pattern": {
                "modeling": "delay",
                "delay": {"delays": delays, "flatten_first": 0, "empty_initial": 0},
            },
            "transformer_lm": lm,
            "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
            "attribute_dropout": {},
            "fuser": {
                "cross_attention_pos_emb": False,
                "cross_attention_pos_emb_scale": 1,
                "sum": [],
                "input_interpolate": [],
                **fuse,
            },
            "conditioners": {
                "description": {
                    "model": "t5",
                    "t5": {"name": t5, "finetune": False, "word_dropout": 0.3, "normalize_text": False},
                }
            },
            "interleave_stereo_codebooks": {"use": recipe.stereo, "per_timestep": False},
            "compression_model_n_q": None,
            "encodec": {
                **dict(autoencoder="seanet", quantizer="rvq", sample_rate=32000, channels=1),
                **dict(causal=False, renormalize=False),
            },
            "seanet": seanet,
            "rvq": rvq,
        }
    )


if __name__ == "__main__":
    # the built-in model, until one is trained
    write(Path(sys.argv[1]), Recipe(latent=32, half=True, half_codec=True, seed=1))
