"""The Transformer against independent statements of the same models: a plain one here, and `transformers`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.model import attention
from llm_core.model.checkpoint import save_model
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.batches import TokenBatch, next_token_loss
from llm_core.train.optim import OptimizerOptions, make_optimizer


def randomise(model: Transformer, seed: int = 0) -> Transformer:
    """Random values everywhere, so that no zero, one or empty bias hides a mistake."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.15 + (parameter.dim() == 1) * 0.5)
    return model.eval()


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def plain_seed(state: dict[str, Tensor], tokens: list[int], width: int, heads: int, layers: int) -> Tensor:
    """The seed model restated from its description, one position and one head at a time: logits [T, V]."""
    x = torch.stack([state["model.embed_tokens.weight"][token] for token in tokens])
    for position in range(len(tokens)):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            x[position, 2 * i] += math.sin(angle)
            x[position, 2 * i + 1] += math.cos(angle)
    size = width // heads
    for layer in range(layers):
        part = {k.removeprefix(f"model.layers.{layer}."): v for k, v in state.items() if f".layers.{layer}." in k}
        h = plain_layer_norm(x, part["input_layernorm.weight"], part["input_layernorm.bias"])
        q, k, v = (h @ part[f"self_attn.{n}_proj.weight"].T + part[f"self_attn.{n}_proj.bias"] for n in "qkv")
        mixed = torch.zeros_like(x)
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            for position in range(len(tokens)):
                scores = torch.stack([q[position, cut] @ k[s, cut] / math.sqrt(size) for s in range(position + 1)])
                weights = torch.exp(scores - scores.max()) / torch.exp(scores - scores.max()).sum()
                mixed[position, cut] = sum(weights[s] * v[s, cut] for s in range(position + 1))
        x = x + mixed @ part["self_attn.o_proj.weight"].T + part["self_attn.o_proj.bias"]
        h = plain_layer_norm(x, part["post_attention_layernorm.weight"], part["post_attention_layernorm.bias"])
        h = h @ part["mlp.up_proj.weight"].T + part["mlp.up_proj.bias"]
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        x = x + h @ part["mlp.down_proj.weight"].T + part["mlp.down_proj.bias"]
    return plain_layer_norm(x, state["model.norm.weight"], state["model.norm.bias"]) @ state["lm_head.weight"].T


def test_seed_equals_a_plain_restatement() -> None:
    config = ModelConfig.preset("seed", vocab_size=83, layers=2, width=48, heads=6, context=16)
    model = randomise(Transformer(config))
    tokens = torch.randint(0, 83, (12,), generator=torch.Generator().manual_seed(3)).tolist()
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        ours, plain = model(torch.tensor([tokens]))[0], plain_seed(state, tokens, 48, 6, 2)
    assert torch.allclose(ours, plain, atol=1e-5, rtol=0)
    assert plain.abs().max() > 1


def test_seed_drops_in_training_only() -> None:
    model = randomise(Transformer(ModelConfig.preset("seed", vocab_size=83, layers=2, width=48, heads=6, context=16)))
    tokens = torch.arange(10)[None]
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def plain_rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5)


def plain_turn(x: Tensor, position: int) -> Tensor:
    half = len(x) // 2
    out = torch.zeros_like(x)
    for i in range(half):
        angle = position / 10000 ** (i / half)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def plain_speedrun(state: dict[str, Tensor], tokens: list[int], heads: int, kv_heads: int, layers: int) -> Tensor:
    """The speedrun model restated from its description: logits [T, V]."""
    start = x = plain_rms(state["model.embed_tokens.weight"][tokens])
    for layer in range(layers):
        part = {k.removeprefix(f"model.layers.{layer}."): v for k, v in state.items() if f".layers.{layer}." in k}
        x = state["model.residual_scales"][layer] * x + state["model.embedding_scales"][layer] * start
        h = plain_rms(x)
        q, k, v = (h @ part[f"self_attn.{n}_proj.weight"].T for n in "qkv")
        size = q.shape[1] // heads
        if layer % 2 == (layers - 1) % 2:
            gate = 2 / (1 + torch.exp(-h[:, :12] @ part["self_attn.value_gate.weight"].T))
            v = v + gate.repeat_interleave(size, 1) * state[f"model.embed_values.{layer}.weight"][tokens]
        mixed = torch.zeros(len(tokens), heads * size)
        for head in range(heads):
            mine = slice(head * size, (head + 1) * size)
            shared = slice(head // (heads // kv_heads) * size, (head // (heads // kv_heads) + 1) * size)
            turned_q = [plain_turn(plain_rms(q[p, mine]), p) for p in range(len(tokens))]
            turned_k = [plain_turn(plain_rms(k[p, shared]), p) for p in range(len(tokens))]
            for p in range(len(tokens)):
                scores = torch.stack([turned_q[p] @ turned_k[s] * 1.44 / math.sqrt(size) for s in range(p + 1)])
                mixed[p, mine] = scores.softmax(0) @ v[: p + 1, shared]
        x = x + mixed @ part["self_attn.o_proj.weight"].T
        inner = torch.clamp(plain_rms(x) @ part["mlp.up_proj.weight"].T, min=0) ** 2
        x = x + inner @ part["mlp.down_proj.weight"].T
    return 15 * torch.tanh(plain_rms(x) @ state["lm_head.weight"].T / 15)


def test_speedrun_equals_a_plain_restatement() -> None:
    sizes = {"vocab_size": 83, "layers": 3, "width": 48, "heads": 6, "kv_heads": 2, "context": 16}
    model = randomise(Transformer(ModelConfig.preset("speedrun", **sizes)))
    tokens = torch.randint(0, 83, (10,), generator=torch.Generator().manual_seed(3)).tolist()
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        ours, plain = model(torch.tensor([tokens]))[0], plain_speedrun(state, tokens, 6, 2, 3)
    assert torch.allclose(ours, plain, atol=2e-5, rtol=0)
    assert plain.abs().max() > 1


def test_speedrun_without_a_cap_is_the_same_but_for_the_cap() -> None:
    sizes = {"vocab_size": 83, "layers": 2, "width": 48, "heads": 6, "context": 16}
    capped, free = (randomise(Transformer(ModelConfig.preset("speedrun", **sizes, softcap=cap))) for cap in (4.0, 0.0))
    tokens = torch.arange(10)[None]
    assert torch.allclose(capped(tokens), 4 * torch.tanh(free(tokens) / 4), atol=1e-5)


@pytest.mark.parametrize("name", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_gradients_of_the_short_operations_equal_autograds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norms and rotations with a backward pass of their own, against the plain operations."""
    config = ModelConfig.preset(name, vocab_size=50, layers=2, heads=2, width=32, context=32, dropout=0.0)
    model = randomise(Transformer(config))
    tokens = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(1))

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(tokens).square().mean(), list(model.parameters())))

    short = gradients()
    monkeypatch.setattr(attention, "rms_norm", lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps))
    monkeypatch.setattr(attention, "rotate", plain_rotate)
    for ours, plain in zip(short, gradients(), strict=True):
        assert torch.allclose(ours, plain, atol=1e-5, rtol=1e-4)


def plain_rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


@pytest.mark.parametrize(
    ("name", "tied"), [("gpt2", True), ("llama", False), ("llama", True), ("qwen3", False), ("qwen3", True)]
)
def test_five_training_steps_give_the_losses_of_transformers(name: str, tied: bool, tmp_path: Path) -> None:
    """The same weights, batches and AdamW on both sides."""
    transformers = pytest.importorskip("transformers")
    grouped = {} if name == "gpt2" else {"kv_heads": 2, "tied": tied}
    config = ModelConfig.preset(name, vocab_size=60, layers=2, heads=4, width=32, context=24, dropout=0.0, **grouped)
    torch.manual_seed(0)
    ours = Transformer(config)
    save_model(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    optimizer = make_optimizer(ours, OptimizerOptions(learning_rate=3e-3, weight_decay=0.0))
    reference = torch.optim.AdamW(theirs.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses: list[tuple[float, float]] = []
    for step in range(5):
        rows = torch.randint(0, 60, (3, 21), generator=torch.Generator().manual_seed(step))
        batch = TokenBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        optimizer.zero_grad()
        loss = next_token_loss(ours, batch)
        (loss.total / loss.count).backward()
        optimizer.step(1.0)
        logits = theirs(rows[:, :-1]).logits.flatten(0, 1)
        expected = F.cross_entropy(logits, rows[:, 1:].flatten())
        reference.zero_grad()
        expected.backward()
        reference.step()
        losses.append((loss.total.item() / loss.count, expected.item()))
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], abs=2e-5)
    assert losses[0] != losses[-1]


HF_SIZES = {"vocab_size": 99, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48}
HF_GATED = HF_SIZES | {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
    "max_position_embeddings": 300,
}


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_equals_transformers_with_the_same_weights(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    make_config, make_model = kinds[name]
    theirs = make_model(make_config(**HF_GATED, tie_word_embeddings=False, rms_norm_eps=1e-6)).eval()
    config = ModelConfig.preset(
        name,
        vocab_size=99,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=16,
        width=48,
        hidden=80,
        context=300,
        norm_eps=1e-6,
    )
    ours = randomise(Transformer(config))
    missing = theirs.load_state_dict(ours.state_dict(), strict=True)
    assert not missing.missing_keys
    tokens = torch.randint(0, 99, (2, 280), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (ours(tokens) - theirs(tokens).logits).abs().max()
    assert difference < 2e-5


@pytest.mark.parametrize("name", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_blockwise_attention_equals_one_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.preset(name, vocab_size=50, layers=2, heads=2, width=32, context=64)
    model = randomise(Transformer(config))
    tokens = torch.randint(0, 50, (2, 50), generator=torch.Generator().manual_seed(1))
    whole = model(tokens)
    monkeypatch.setattr(attention, "BLOCK", 16)
    assert torch.allclose(model(tokens), whole, atol=1e-5)


@pytest.mark.parametrize("name", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_left_padding_changes_nothing(name: str) -> None:
    config = ModelConfig.preset(name, vocab_size=50, layers=2, heads=2, width=32, context=32)
    model = randomise(Transformer(config))
    tokens = torch.randint(0, 50, (1, 9), generator=torch.Generator().manual_seed(1))
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), tokens), dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 9])
    assert torch.allclose(model(padded, attention_mask=mask)[:, 4:], model(tokens), atol=1e-5)


@pytest.mark.parametrize("name", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_later_tokens_do_not_reach_back(name: str) -> None:
    config = ModelConfig.preset(name, vocab_size=50, layers=2, heads=2, width=32, context=32)
    model = randomise(Transformer(config))
    tokens = torch.randint(0, 50, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_a_sequence_beyond_the_context_is_refused() -> None:
    model = Transformer(ModelConfig.preset("qwen3", vocab_size=50, layers=1, heads=2, width=16, context=8))
    with pytest.raises(BadInput, match="9 tokens exceeds the context 8"):
        model(torch.zeros(1, 9, dtype=torch.long))
