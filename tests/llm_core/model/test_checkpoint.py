"""Model directories: opened by `transformers`, opened from it, the same bytes twice, broken ones refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_core.contract import BadInput
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer

SIZES = {"vocab_size": 70, "layers": 2, "heads": 4, "width": 32, "context": 48}


def make(name: str) -> Transformer:
    grouped = {"kv_heads": 2, "head_size": 12} if name in ("llama", "qwen3", "speedrun") else {}
    torch.manual_seed(2)
    model, draw = Transformer(ModelConfig.preset(name, **(SIZES | grouped))), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model.eval()


TOKENS = torch.arange(40).reshape(2, 20)


@pytest.mark.parametrize("name", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_a_saved_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = make(name)
    save_model(model, tmp_path, card="# Card\n")
    again = load_model(tmp_path)
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert (tmp_path / "README.md").read_text() == "# Card\n"


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@torch.no_grad()
def test_transformers_opens_the_directory_and_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = make(name)
    save_model(model, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.allclose(theirs.eval()(TOKENS).logits, model(TOKENS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@torch.no_grad()
def test_a_directory_saved_by_transformers_opens_here(name: str, tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 70, "hidden_size": 32}
    gated = common | {
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 48,
        "head_dim": 8,
        "tie_word_embeddings": tied,
    }
    config = {
        "gpt2": lambda: transformers.GPT2Config(**common, n_positions=48),
        "llama": lambda: transformers.LlamaConfig(**gated),
        "qwen3": lambda: transformers.Qwen3Config(**gated, initializer_range=0.3),
    }[name]()
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert torch.allclose(ours(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=0)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        save_model(make("qwen3"), folder)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_broken_directories_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no model here"):
        load_model(tmp_path)
    save_model(make("qwen3"), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        load_model(tmp_path)
    weights.write_bytes(whole)
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"num_hidden_layers": 3}))
    with pytest.raises(BadInput, match=r"has no tensor 'model\.layers\.2"):
        load_model(tmp_path)
    config.write_text(json.dumps(told | {"vocab_size": 71}))
    with pytest.raises(BadInput, match=r"config\.json says"):
        load_model(tmp_path)
    config.write_text(json.dumps(told | {"model_type": "mamba"}))
    with pytest.raises(BadInput, match="'mamba'"):
        load_model(tmp_path)
    config.write_text("{")
    with pytest.raises(BadInput, match=r"config\.json: not JSON"):
        load_model(tmp_path)
    config.write_text(json.dumps({name: value for name, value in told.items() if name != "hidden_size"}))
    with pytest.raises(BadInput, match=r"config\.json: has no 'hidden_size'"):
        load_model(tmp_path)
    config.write_text(json.dumps(told))
    state = load_file(weights)
    save_file(state | {"model.norm.weight": torch.ones(32, dtype=torch.int32)}, weights)
    with pytest.raises(BadInput, match=r"tensor 'model\.norm\.weight' holds int32, not floating-point"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("qwen3", {"use_sliding_window": True}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ],
)
def test_a_model_that_computes_otherwise_is_refused(name: str, foreign: dict[str, object], tmp_path: Path) -> None:
    """It would load and give other logits."""
    save_model(make(name), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | foreign))
    with pytest.raises(BadInput, match=next(iter(foreign))):
        load_model(tmp_path)
