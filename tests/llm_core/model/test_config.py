"""Model shapes: presets, what does not fit together, and the costs told beforehand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llm_core.contract import BadInput
from llm_core.model.config import PRESETS, ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.settings.pretrain import PretrainConfig


def test_seed_has_the_documents_sizes() -> None:
    config = ModelConfig.preset("seed")
    assert (config.vocab_size, config.width, config.heads, config.layers, config.context) == (50257, 288, 6, 6, 256)
    assert config.dropout == 0.1
    assert not config.tied
    assert config.parameters() == 34_943_040


def test_gpt2_has_as_many_parameters_as_the_published_model() -> None:
    assert ModelConfig.preset("gpt2").parameters() == 124_439_808


@pytest.mark.parametrize("name", PRESETS)
def test_the_told_parameters_are_the_built_ones(name: str) -> None:
    small = ModelConfig.preset(name, vocab_size=101, layers=2, width=48, heads=4, context=16)
    model = Transformer(small)
    assert sum(p.numel() for p in model.parameters()) == small.parameters()
    grouped = {"kv_heads": 2, "hidden": 20, "head_size": 8} if small.rotary else {"hidden": 20}
    other = ModelConfig.preset(name, vocab_size=101, layers=1, width=48, heads=6, context=16, **grouped)
    assert sum(p.numel() for p in Transformer(other).parameters()) == other.parameters()


def test_flops_are_six_per_weight_of_a_product_and_the_attention() -> None:
    config = ModelConfig.preset("llama", vocab_size=10, layers=1, heads=1, width=4, hidden=8, context=2)
    products = 4 * 4 * 4 + 3 * 4 * 8 + 10 * 4
    norms = 3 * 4
    assert config.flops_per_token() == 6 * (products + norms) + 12 * 4 * 2


@pytest.mark.parametrize(
    ("name", "sizes", "field"),
    [
        ("qwen3", {"heads": 5}, "model.heads"),
        ("qwen3", {"heads": 4, "kv_heads": 3}, "model.kv_heads"),
        ("llama", {"width": 36, "heads": 12}, "model.head_size"),
        ("seed", {"kv_heads": 3}, "model.kv_heads"),
        ("gpt2", {"tied": False}, "model.tied"),
        ("qwen3", {"dropout": 1.0}, "model.dropout"),
        ("qwen3", {"layers": 0}, "model.layers"),
        ("qwen3", {"colour": 1}, "model.colour"),
        ("bert", {}, "model.preset"),
    ],
)
def test_what_does_not_fit_is_named(name: str, sizes: dict[str, int], field: str) -> None:
    with pytest.raises(BadInput, match=field):
        ModelConfig.preset(name, **sizes)


def test_the_settings_refuse_a_shape_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide the width 128"):
        PretrainConfig.model_validate({"model": {"heads": 5}})


def test_config_and_settings_import_no_torch() -> None:
    code = "import llm_core.settings.pretrain, llm_core.settings.sft, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
