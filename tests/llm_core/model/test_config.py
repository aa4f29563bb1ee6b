"""Model shapes: presets, what does not fit together, and the costs told beforehand."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import torch

from llm_core.contract import BadInput
from llm_core.model.config import PRESETS, Architecture, ModelConfig, PresetName
from llm_core.model.transformer import Transformer
from llm_core.settings.pretrain import PretrainConfig
from llm_core.train.optim import OptimizerOptions, make_optimizer


def test_seed_has_the_documents_sizes() -> None:
    config = ModelConfig.preset("seed")
    assert (config.vocab_size, config.width, config.heads, config.layers, config.context) == (50257, 288, 6, 6, 256)
    assert config.dropout == 0.1
    assert not config.tied
    assert config.parameters() == 34_943_040


def test_gpt2_has_as_many_parameters_as_the_published_model() -> None:
    assert ModelConfig.preset("gpt2").parameters() == 124_439_808


@pytest.mark.parametrize("name", get_args(Architecture))
def test_the_told_parameters_are_the_built_ones(name: str) -> None:
    small = ModelConfig.preset(name, vocab_size=101, layers=2, width=48, heads=4, context=16)
    model = Transformer(small)
    assert sum(p.numel() for p in model.parameters()) == small.parameters()
    grouped = {"kv_heads": 2, "hidden": 20, "head_size": 10} if small.rotary else {"hidden": 20}
    other = ModelConfig.preset(name, vocab_size=101, layers=1, width=48, heads=6, context=16, **grouped)
    assert sum(p.numel() for p in Transformer(other).parameters()) == other.parameters()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name: str) -> None:
    """On torch's meta device, where tensors have a shape and no memory."""
    assert name in get_args(PresetName)
    config = ModelConfig.preset(name)
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters()
    assert PretrainConfig.model_validate({"model": {"preset": name}}).model.build(None) == config


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 0.17), ("seed-30m", 34.9), ("gpt2-124m", 124.4), ("350m", 353.5), ("1b", 1046.7)]
)
def test_sizes_are_what_their_names_say(name: str, millions: float) -> None:
    assert ModelConfig.preset(name).parameters() / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", [*get_args(Architecture), "grouped"])
def test_memory_is_told_before_anything_is_allocated(name: str) -> None:
    """Weights, gradients and state exactly; what backward keeps within 5% of what autograd holds."""
    sizes = {"vocab_size": 64, "layers": 8, "heads": 4, "width": 64, "context": 128, "dropout": 0.0}
    config = ModelConfig.preset("llama" if name == "grouped" else name, **sizes, **GROUPED.get(name, {}))
    model = Transformer(config)
    told = config.memory(4, "muon")
    trained = [p for p in model.parameters() if p.requires_grad]
    assert told.weights == told.gradients == 4 * sum(p.numel() for p in trained)
    optimizer = make_optimizer(model, OptimizerOptions(name="muon"))
    assert told.optimizer == 4 * sum(t.numel() for n, t in optimizer.tensors().items() if n != "count")
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden(torch.zeros(4, 128, dtype=torch.long))
    held = sum(size for place, size in kept.items() if place not in own)
    assert hidden.requires_grad
    logits = 4 * 4 * 128 * 64
    assert told.activations - logits == pytest.approx(held, rel=0.05)
    assert told.total == told.weights + told.gradients + told.optimizer + told.activations


GROUPED = {"grouped": {"kv_heads": 2, "head_size": 24, "hidden": 96}}


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    config = ModelConfig.preset("tiny")
    config.check_vocabulary(512)
    with pytest.raises(BadInput, match=r"model\.vocab_size: the tokenizer has 513 tokens, the model knows 512"):
        config.check_vocabulary(513)


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
        ("speedrun", {"tied": True}, "model.tied"),
        ("qwen3", {"softcap": 15.0}, "model.softcap"),
        ("speedrun", {"width": 36, "heads": 12}, "model.head_size"),
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
