"""Config and weights in Hugging Face's terms, both ways.

Llama and Qwen3 need only a config: our modules carry their names. GPT-2 stores query, key and value in one transposed
matrix, which is split and joined here. `seed` and `speedrun` are no architectures of `transformers`; they keep our
names.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.model.config import ModelConfig

ARCHITECTURES = {
    "seed": ("groundup_seed", "GroundupSeed"),
    "gpt2": ("gpt2", "GPT2LMHeadModel"),
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "speedrun": ("groundup_speedrun", "GroundupSpeedrun"),
}

EXPORTABLE = ("gpt2", "llama", "qwen3")
"""Architectures that `transformers` (and with it vLLM and llama.cpp's converter) has too."""


def why_not_exportable(kind: str) -> str | None:
    """Why a model of this architecture, or of this model_type in config.json, cannot be exported; None if it can."""
    names = {model_type: architecture for architecture, (model_type, _) in ARCHITECTURES.items()}
    architecture = names.get(kind, kind)
    if architecture in EXPORTABLE:
        return None
    return (
        f"a model of architecture {architecture!r} cannot be exported, transformers has no such architecture; "
        f"{', '.join(EXPORTABLE)} can be"
    )


_GPT2_NAMES = (
    (r"^model\.embed_tokens\.", "transformer.wte."),
    (r"^model\.embed_positions\.", "transformer.wpe."),
    (r"^model\.norm\.", "transformer.ln_f."),
    (r"^model\.layers\.(\d+)\.", r"transformer.h.\1."),
    (r"\.input_layernorm\.", ".ln_1."),
    (r"\.post_attention_layernorm\.", ".ln_2."),
    (r"\.self_attn\.o_proj\.", ".attn.c_proj."),
    (r"\.self_attn\.c_attn\.", ".attn.c_attn."),
    (r"\.mlp\.up_proj\.", ".mlp.c_fc."),
    (r"\.mlp\.down_proj\.", ".mlp.c_proj."),
)
_GPT2_TURNED = (".attn.c_proj.weight", ".attn.c_attn.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")


def gpt2_name(name: str) -> str:
    """What `transformers` calls a tensor of GPT-2 of ours; not for query, key and value, which are one tensor there."""
    for pattern, replacement in _GPT2_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def to_config(config: ModelConfig, end_id: int | None) -> dict[str, Any]:
    """The contents of config.json. `end_id`: the token that ends a text."""
    kind, name = ARCHITECTURES[config.architecture]
    common = {"model_type": kind, "architectures": [name], "vocab_size": config.vocab_size, "dtype": "float32"}
    common |= {"bos_token_id": end_id, "eos_token_id": end_id, "tie_word_embeddings": config.tied}
    if config.architecture == "gpt2":
        return common | {
            "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads, "n_positions": config.context,
            "n_inner": config.hidden, "layer_norm_epsilon": config.norm_eps, "activation_function": "gelu_new",
            "initializer_range": config.initial_std, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
        }  # fmt: skip
    shared = common | {
        "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_size, "intermediate_size": config.hidden,
        "max_position_embeddings": config.context, "attention_bias": config.attention_bias,
        "initializer_range": config.initial_std, "embedding_initializer_range": config.embedding_std,
    }  # fmt: skip
    if config.architecture == "seed":
        return shared | {"layer_norm_eps": config.norm_eps, "dropout": config.dropout}
    rope = {"rope_type": "default", "rope_theta": config.rope_base}
    return shared | {
        "rms_norm_eps": config.norm_eps, "hidden_act": "silu", "rope_theta": config.rope_base, "rope_parameters": rope,
        "attention_dropout": 0.0, "residual_dropout": config.dropout,
    }  # fmt: skip


_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "rope_scaling": (None,),
}
"""Settings of `transformers` that change what a model computes, and the values that ours computes."""


def _refuse_what_computes_otherwise(found: dict[str, Any]) -> None:
    """Such a model would load and give other logits."""
    for name, known in _ONLY.items():
        if name in found and found[name] not in known:
            raise BadInput(f"config.json: {name} {found[name]!r} is not supported, only {known[0]!r}")
    rope = found.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise BadInput(f"config.json: rope_parameters of type {rope['rope_type']!r} are not supported, only 'default'")


def from_config(found: dict[str, Any]) -> ModelConfig:
    """The model described by a config.json. Raises `BadInput` for an architecture that we do not have."""
    kinds = {kind: architecture for architecture, (kind, _) in ARCHITECTURES.items()}
    architecture = kinds.get(str(found.get("model_type")))
    if architecture is None:
        raise BadInput(f"config.json: model_type {found.get('model_type')!r} is none of {', '.join(kinds)}")
    _refuse_what_computes_otherwise(found)
    if architecture == "gpt2":
        return ModelConfig.preset(
            "gpt2", vocab_size=found["vocab_size"], width=found["n_embd"], layers=found["n_layer"],
            heads=found["n_head"], context=found["n_positions"], hidden=found.get("n_inner"),
            norm_eps=found.get("layer_norm_epsilon"), dropout=found.get("resid_pdrop", 0.1),
            initial_std=found.get("initializer_range"),
        )  # fmt: skip
    rope = found.get("rope_parameters") or {}
    return ModelConfig.preset(
        architecture, vocab_size=found["vocab_size"], width=found["hidden_size"], layers=found["num_hidden_layers"],
        heads=found["num_attention_heads"], kv_heads=found.get("num_key_value_heads"),
        head_size=found.get("head_dim"), hidden=found["intermediate_size"], context=found["max_position_embeddings"],
        attention_bias=found.get("attention_bias", False), tied=found.get("tie_word_embeddings", False),
        rope_base=rope.get("rope_theta") or found.get("rope_theta"), initial_std=found.get("initializer_range"),
        embedding_std=found.get("embedding_initializer_range"),
        norm_eps=found.get("layer_norm_eps" if architecture == "seed" else "rms_norm_eps"),
        dropout=found.get("dropout" if architecture == "seed" else "residual_dropout", 0.0),
    )  # fmt: skip


def to_state(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under Hugging Face's names."""
    if config.architecture != "gpt2":
        return dict(state)
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name)
        if found:
            parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            out[f"transformer.h.{found[1]}.attn.c_attn.{found[2]}"] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            out[gpt2_name(name)] = value
    return {name: value.t() if name.endswith(_GPT2_TURNED) else value for name, value in out.items()}


def from_state(config: ModelConfig, state: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """Weights for the names `wanted` (our own) out of a Hugging Face state."""
    if config.architecture != "gpt2":
        return dict(state)
    state = {name if name.startswith("transformer.") else f"transformer.{name}": value for name, value in state.items()}
    out: dict[str, Tensor] = {}
    for name in wanted:
        found = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if found:
            joined = state[f"transformer.h.{found[1]}.attn.c_attn.{found[3]}"]
            joined = joined.t() if found[3] == "weight" else joined
            out[name] = joined.chunk(3)["qkv".index(found[2])]
            continue
        renamed = gpt2_name(name)
        value = state[renamed]
        out[name] = value.t() if renamed.endswith(_GPT2_TURNED) else value
    return out
