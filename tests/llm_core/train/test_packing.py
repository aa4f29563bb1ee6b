"""Packed dialogues learn what they learn alone: the same losses, the same gradients, no look at a neighbour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.batches import DialogueBatches, Windows, collate, collate_packed, next_token_loss
from llm_core.train.packing import deal, first_fit

CONTEXT = 24
LENGTHS = (5, 24, 9, 3, 17, 2, 12, 12, 30)


def model_of(architecture: str) -> Transformer:
    torch.manual_seed(0)
    small = {"layers": 2, "width": 32, "heads": 2, "context": CONTEXT}
    model = Transformer(ModelConfig.preset(architecture, vocab_size=50, **small)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # residual outputs start at zero: nothing could leak through them
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def dialogues(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    texts = [draw.integers(1, 50, size=length) for length in LENGTHS]
    return texts, [(np.arange(len(text)) >= len(text) // 2) for text in texts]


def gradients(model: Transformer, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("architecture", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_packed_losses_and_gradients_are_those_of_each_dialogue_alone(architecture: str) -> None:
    model = model_of(architecture)
    texts, masks = dialogues()
    total, sums, count = 0.0, [torch.zeros_like(p) for p in model.parameters()], 0.0
    for text, mask in zip(texts, masks, strict=True):
        loss = next_token_loss(model, collate([text], [mask], CONTEXT))
        total, count = total + float(loss.total.detach()), count + loss.count
        sums = [a + b for a, b in zip(sums, gradients(model, loss.total), strict=True)]
    packed = collate_packed(texts, masks, CONTEXT)
    assert packed.inputs_BT.shape == (5, CONTEXT)  # nine dialogues, 105 tokens to learn from, in the fewest rows
    loss = next_token_loss(model, packed)
    assert loss.count == count
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-6)
    for ours, theirs in zip(gradients(model, loss.total), sums, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_no_dialogue_sees_its_neighbours(architecture: str) -> None:
    model = model_of(architecture)
    texts, masks = dialogues()
    before = collate_packed(texts, masks, CONTEXT)
    assert before.segments_BT is not None
    row = int((before.segments_BT.max(dim=1).values >= 2).nonzero()[0])
    changed = before.inputs_BT.clone()
    first = before.segments_BT[row] == 1
    changed[row, first] = (changed[row, first] + 7) % 50
    with torch.no_grad():
        hidden = [model.hidden(tokens, segments=before.segments_BT)[row] for tokens in (before.inputs_BT, changed)]
        whole = [model.hidden(tokens)[row] for tokens in (before.inputs_BT, changed)]
    others = before.segments_BT[row] > 1
    assert torch.equal(hidden[0][others], hidden[1][others])
    assert not torch.equal(hidden[0][first], hidden[1][first])
    assert not torch.allclose(whole[0][others], whole[1][others])  # without segments it would leak: the test can fail


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(40, 90), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_rows_and_parts_hold_every_text_once(lengths: list[int], room: int, parts: int) -> None:
    rows = first_fit(lengths, room)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= room for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // room) * 2 + 1  # never twice the volume's rows, and a bit
    groups = deal(lengths, parts)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert sum(1 for group in groups if group) == min(parts, len(lengths))
    totals = [sum(lengths[index] for index in group) for group in groups]
    assert max(totals) - min(totals) <= max(lengths)


def test_a_text_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="41 tokens does not fit into rows of 40"):
        first_fit([3, 41], 40)


def test_a_step_holds_the_same_packed_or_padded_and_its_share_of_pages() -> None:
    offsets = np.concatenate(([0], np.cumsum(np.arange(40) % 7 + 3)))
    tokens = np.repeat(np.arange(40), np.diff(offsets))
    stream = np.arange(1000, 1400)

    def counted(packed: bool, parts: int) -> list[list[int]]:
        batches = DialogueBatches(
            tokens, np.ones_like(tokens), offsets, [(np.arange(40), 12)], context=16, seed=1, parts=parts,
            packed=packed, pages=(Windows(lambda _: stream, 16, 1, stream=3), 2),
        )  # fmt: skip
        steps = []
        for step in range(8):
            found = [batches(step * parts + part) for part in range(parts)]
            steps.append(sorted(int(t) for b in found for t in b.targets_BT.flatten()[b.counted_N]))
        return steps

    padded = counted(False, 1)
    assert padded == counted(True, 1) == counted(True, 4) == counted(False, 4)
    assert all(sum(token >= 1000 for token in step) == 2 * 16 for step in padded)
    assert padded[0] != padded[1]
