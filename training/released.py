"""AudioCraft's released format: weights packed with their configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from training.plan import CODEBOOK_SIZE, CODEBOOKS, SAMPLE_RATE, Plan


def configuration(plan: Plan) -> Any:
    """Return the configuration for AudioCraft's builders: values of the released models, with the plan's sizes."""
    lm = {
        **dict(
            dim=plan.dim,
            num_heads=plan.heads,
            num_layers=plan.layers,
            hidden_scale=4,
            n_q=CODEBOOKS,
            card=CODEBOOK_SIZE,
        ),
        **dict(dropout=0.0, emb_lr=None, activation="gelu", norm_first=True, bias_ff=False, bias_attn=False),
        **dict(bias_proj=False, past_context=None, causal=True, custom=False, memory_efficient=True),
        **dict(attention_as_float32=False, layer_scale=None, positional_embedding="sin", xpos=False),
        **dict(checkpointing="none", weight_init="gaussian", depthwise_init="current", zero_bias_init=True),
        **dict(norm="layer_norm", cross_attention=False, qk_layer_norm=False, qk_layer_norm_cross=False),
        **dict(attention_dropout=None, kv_repeat=1, two_step_cfg=False),
    }
    seanet = {
        **dict(dimension=plan.latent, channels=1, causal=False, n_filters=plan.filters, n_residual_layers=1),
        **dict(ratios=[8, 5, 4, 4], activation="ELU", activation_params={"alpha": 1.0}, norm="weight_norm"),
        **dict(norm_params={}, kernel_size=7, residual_kernel_size=3, last_kernel_size=7, dilation_base=2),
        **dict(pad_mode="constant", true_skip=True, compress=2, lstm=2, disable_norm_outer_blocks=0),
        # Only the decoder needs an LSTM; without one in the encoder the file is 1 MB smaller.
        **dict(decoder=dict(trim_right_ratio=1.0, final_activation=None, final_activation_params=None)),
        **dict(encoder=dict(lstm=0)),
    }
    rvq = {
        **dict(n_q=CODEBOOKS, q_dropout=False, bins=CODEBOOK_SIZE, decay=0.98, kmeans_init=False, kmeans_iters=50),
        # 0 disables the replacement of dead entries: AudioCraft 1.3.0 replaces one and undoes it in the same step.
        **dict(threshold_ema_dead_code=0, orthogonal_reg_weight=0.0, orthogonal_reg_active_codes_only=False),
    }
    return OmegaConf.create(
        {
            **dict(device="cpu", dtype="float32", lm_model="transformer_lm", compression_model="encodec"),
            **dict(sample_rate=SAMPLE_RATE, channels=1, dataset={"segment_duration": plan.lm_seconds}),
            "codebooks_pattern": {
                "modeling": "delay",
                "delay": {"delays": list(range(CODEBOOKS)), "flatten_first": 0, "empty_initial": 0},
            },
            "transformer_lm": lm,
            "classifier_free_guidance": {"training_dropout": plan.cfg_dropout, "inference_coef": 3.0},
            "attribute_dropout": {},
            "fuser": {
                **dict(cross_attention_pos_emb=False, cross_attention_pos_emb_scale=1),
                **dict(sum=[], prepend=[], cross=["description"], input_interpolate=[]),
            },
            "conditioners": {
                "description": {
                    "model": "t5",
                    "t5": {"name": "t5", "finetune": False, "word_dropout": 0.0, "normalize_text": False},
                }
            },
            "interleave_stereo_codebooks": {"use": False, "per_timestep": False},
            "compression_model_n_q": None,
            "encodec": {
                **dict(autoencoder="seanet", quantizer="rvq", sample_rate=SAMPLE_RATE, channels=1),
                **dict(causal=False, renormalize=False),
            },
            "seanet": seanet,
            "rvq": rvq,
        }
    )


def pack(state: dict[str, torch.Tensor], config: Any, place: Path, *, half: bool = True) -> None:
    """Write weights and configuration as one checkpoint file."""
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    state = {key: value.cpu() for key, value in state.items()}
    package = {"best_state": state, "xp.cfg": OmegaConf.to_yaml(config), "version": "1.3.0", "exported": True}
    torch.save(package, place)
    place.chmod(0o644)
