"""AdamW against PyTorch's own, Muon against its definition, and every parameter claimed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.optim import AdamW, Muon, OptimizerOptions, Optimizers, make_optimizer, orthogonalise


def small(name: str = "qwen3") -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig.preset(name, vocab_size=40, layers=2, heads=2, width=16, context=8))


def test_adamw_equals_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(7, 5), nn.Linear(7, 5)
    theirs.load_state_dict(ours.state_dict())
    adamw = AdamW(list(ours.named_parameters()), 0.01, (0.9, 0.95), 0.1)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for count in range(1, 20):
        x = torch.randn(11, 7)
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().sum().backward()
        adamw.step(1.0, count)
        reference.step()
    for ours_p, theirs_p in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours_p, theirs_p, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 16, 40)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    turned = orthogonalise(matrices)
    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.3
    assert values.max() < 1.4
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ v
    cosine = (turned * nearest).sum((1, 2)) / (turned.norm(dim=(1, 2)) * nearest.norm(dim=(1, 2)))
    assert cosine.min() > 0.95


def test_muon_moves_along_the_orthogonalised_nesterov_momentum() -> None:
    tall = nn.Parameter(torch.zeros(12, 3))
    muon = Muon([("tall", tall)], rate=0.1, momentum=0.9, decay=0.0)
    moment = torch.zeros(12, 3)
    for _ in range(3):
        before, gradient = tall.detach().clone(), torch.randn(12, 3)
        tall.grad = gradient.clone()
        muon.step(0.5)
        moment = 0.9 * moment + 0.1 * gradient
        update = orthogonalise((0.1 * gradient + 0.9 * moment).t()[None])[0].t()
        assert torch.allclose(tall, before - 0.05 * 2.0 * update, atol=1e-6)


def test_every_parameter_is_claimed_once() -> None:
    for name in ("seed", "gpt2", "llama", "qwen3"):
        for kind in ("muon", "adamw"):
            model = small(name)
            made = make_optimizer(model, OptimizerOptions(name=kind))  # type: ignore[arg-type]
            assert len(made.parameters) == len(list(model.parameters()))


def test_an_unclaimed_parameter_is_an_error() -> None:
    model = small()
    first, *rest = list(model.named_parameters())
    with pytest.raises(ValueError, match=first[0]):
        Optimizers(model, [], [AdamW(rest, 0.1, (0.9, 0.95), 0.0)])
    with pytest.raises(ValueError, match=first[0]):
        Optimizers(model, [], [AdamW([first, *rest], 0.1, (0.9, 0.95), 0.0), AdamW([first], 0.1, (0.9, 0.95), 0.0)])


def test_muon_takes_the_blocks_matrices_and_decay_spares_vectors() -> None:
    made = make_optimizer(small(), OptimizerOptions(name="muon"))
    assert sorted(made.muon[0].parameters)[:2] == [
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
    ]
    assert len(made.muon[0].parameters) == 2 * 7
    for adamw in made.adamw:
        dims = {p.dim() for p in adamw.parameters.values()}
        assert dims == ({1} if adamw.decay == 0 else {2})


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_survives_saving(kind: str) -> None:
    def train(model: Transformer, optimizer: Optimizers, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randint(0, 40, (2, 8))).square().mean().backward()
            optimizer.step(1.0)

    options = OptimizerOptions(name=kind)  # type: ignore[arg-type]
    whole, broken = small(), small()
    one, two = make_optimizer(whole, options), make_optimizer(broken, options)
    train(whole, one, range(6))
    train(broken, two, range(3))
    saved = {name: value.clone() for name, value in two.tensors().items()}
    again, third = small(), None
    again.load_state_dict(broken.state_dict())
    third = make_optimizer(again, options)
    third.load(saved)
    train(again, third, range(3, 6))
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
