"""Low-rank additions: begin as the model was, merge exactly, switch off, open in PEFT, cost little."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.model.checkpoint import save_model
from llm_core.model.config import ModelConfig
from llm_core.model.lora import (
    LoraOptions,
    adapter_off,
    add_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    save_adapter,
)
from llm_core.model.transformer import Transformer
from llm_core.train.optim import OptimizerOptions, make_optimizer

TOKENS = torch.arange(40).reshape(2, 20)


def make(name: str) -> Transformer:
    grouped = {"kv_heads": 2} if name in ("llama", "qwen3", "speedrun") else {}
    torch.manual_seed(2)
    sizes = {"vocab_size": 70, "layers": 2, "heads": 4, "width": 32, "context": 48, "dropout": 0.0}
    model = Transformer(ModelConfig.preset(name, **sizes, **grouped))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def tune(model: Transformer) -> None:
    """Values in every factor, as after training."""
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(0.0, 0.1)


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    return model(TOKENS)


@pytest.mark.parametrize("name", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_it_begins_as_the_model_was_and_merges_exactly(name: str) -> None:
    model = make(name)
    before = logits(model)
    names = list(model.state_dict())
    add_lora(model, LoraOptions(rank=3, alpha=6))
    assert torch.equal(logits(model), before)
    assert set(names) < set(model.state_dict())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(model.state_dict()) - set(names)
    tune(model)
    tuned = logits(model)
    assert not torch.allclose(tuned, before, atol=1e-2)
    with adapter_off(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), tuned)
    merge_lora(model)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    assert torch.allclose(logits(model), tuned, atol=1e-4)


def test_switching_off_is_a_matter_of_one_thread() -> None:
    model = make("qwen3")
    add_lora(model, LoraOptions(rank=2))
    tune(model)
    tuned, seen = logits(model), []
    with adapter_off(model):
        thread = threading.Thread(target=lambda: seen.append(logits(model)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], tuned)


def test_only_the_additions_learn() -> None:
    model = make("qwen3")
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, LoraOptions(rank=2, targets=("q_proj", "v_proj"), dropout=0.1))
    assert len(lora_layers(model)) == 4
    optimizer = make_optimizer(model.train(), OptimizerOptions(name="muon", learning_rate=0.01))
    assert not optimizer.muon
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(TOKENS).flatten(0, 1).log_softmax(-1)[torch.arange(40), TOKENS.flatten()].mean().neg()
        loss.backward()
        optimizer.step(1.0)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())


@pytest.mark.parametrize("targets", [("q_proj", "v_proj", "down_proj"), LoraOptions().targets])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_peft_opens_it_and_gives_the_same_logits(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = make(name)
    (tmp_path / "base").mkdir()
    save_model(model, tmp_path / "base")
    options = LoraOptions(rank=3, alpha=12, targets=targets)
    add_lora(model, options)
    tune(model)
    save_adapter(model, tmp_path / "adapter", options)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    plain = base(TOKENS).logits.detach()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=TOKENS).logits, logits(model), atol=2e-5)
        assert not torch.allclose(plain, logits(model), atol=1e-2)
        assert torch.allclose(theirs.merge_and_unload()(TOKENS).logits, logits(model), atol=1e-4)


@pytest.mark.parametrize("name", ["seed", "llama", "qwen3", "speedrun"])
def test_a_saved_adapter_comes_back(name: str, tmp_path: Path) -> None:
    model, options = make(name), LoraOptions(rank=3, alpha=12)
    add_lora(model, options)
    tune(model)
    save_adapter(model, tmp_path, options)
    again = make(name)
    assert load_adapter(again, tmp_path).rank == 3
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_that_peft_wrote_opens_here(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = make("llama")
    (tmp_path / "base").mkdir()
    save_model(model, tmp_path / "base")
    theirs = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False),
    ).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(logits(model), theirs(input_ids=TOKENS).logits, atol=2e-5)


def test_at_gpt2_124m_it_takes_less_than_35_percent_of_the_memory() -> None:
    """Bytes of gradients and optimiser state, and the same with the weights, of one real step each."""

    def cost(lora: bool) -> tuple[int, int]:
        model = Transformer(ModelConfig.preset("gpt2-124m"))
        if lora:
            add_lora(model, LoraOptions())
        optimizer = make_optimizer(model, OptimizerOptions(name="adamw"))
        model(torch.arange(4)[None]).logsumexp(-1).sum().backward()
        optimizer.step(1.0)
        weights = sum(p.nbytes for p in model.parameters())
        held = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        return held + sum(t.nbytes for t in optimizer.tensors().values()), weights

    (small, kept), (full, weights) = cost(lora=True), cost(lora=False)
    assert full > 3 * 4 * 124_000_000
    assert small < 0.02 * full
    assert small + kept < 0.35 * (full + weights)


def test_what_is_no_adapter_is_named(tmp_path: Path) -> None:
    model = make("qwen3")
    with pytest.raises(BadInput, match=r"lora\.targets: no layer of the model is called c_attn"):
        add_lora(model, LoraOptions(targets=("c_attn",)))
    with pytest.raises(BadInput, match="no adapter to save"):
        save_adapter(model, tmp_path, LoraOptions())
    with pytest.raises(BadInput, match="this is no adapter"):
        load_adapter(model, tmp_path)
    add_lora(model, LoraOptions())
    with pytest.raises(BadInput, match="merge it first"):
        add_lora(model, LoraOptions())
    save_adapter(model, tmp_path, LoraOptions())
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(told | {"r": 4}))
    with pytest.raises(
        BadInput, match=r"lora_A of model\.layers\.0\.self_attn\.q_proj is of shape \(8, 32\), not \(4, 32\)"
    ):
        load_adapter(make("qwen3"), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(told | {"peft_type": "IA3"}))
    with pytest.raises(BadInput, match="not a plain LoRA adapter"):
        load_adapter(make("qwen3"), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(BadInput, match="not a whole adapter"):
        load_adapter(make("qwen3"), tmp_path)
