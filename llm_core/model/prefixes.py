"""Token sequences laid into trees, so that what several of them begin with is computed once.

Notable:
- The choices of a question share its text, and the questions of a task their worked examples. A tree's row holds every
  token once; each token sees its ancestors only, at the position it has in its own sequence (tree attention, as
  SpecInfer of Miao et al. 2024 lays its drafts).
- Sequences are sorted as words in a dictionary are, so neighbours share the longest beginnings and no question needs
  to say which choices are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_core.model.decoder import Decoder, Places
from llm_core.model.transformer import Transformer

LEAST_SHARED = 4
"""A sequence joins its neighbour's tree if so many tokens are shared"""
LEAST_SHARE = 0.25
"""... and they are this share of it: else padding and the other branches cost more than is saved."""
MOST_BESIDES = 512
"""Tokens of a tree beside those of its first sequence, at most: attention over a row costs its length squared."""


@dataclass(slots=True)
class Tree:
    """Sequences in one row. `paths[i]` are the places of sequence `members[i]` in the row, root first."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    runs: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """(start, stop, ancestors' places) of tokens that follow each other."""

    @property
    def plain(self) -> bool:
        """Whether there is one branch only, for which causal attention is enough."""
        return len(self.runs) <= 1

    def add(self, member: int, sequence: Sequence[int], shared: int) -> None:
        """Append what follows the first `shared` tokens, which are those of the sequence added last."""
        trunk = self.paths[-1][:shared] if self.paths else []
        start = len(self.tokens)
        self.tokens += sequence[shared:]
        self.positions += range(shared, len(sequence))
        if len(self.tokens) > start:
            self.runs.append((start, len(self.tokens), trunk))
        self.members.append(member)
        self.paths.append([*trunk, *range(start, len(self.tokens))])

    def mask(self, width: int) -> NDArray[np.bool_]:
        """[width, width]: where each place may look; padding sees itself."""
        seen = np.eye(width, dtype=np.bool_)
        for start, stop, trunk in self.runs:
            seen[start:stop, start:stop] = np.tri(stop - start, dtype=np.bool_)
            if trunk:
                seen[start:stop, trunk] = True
        return seen


def grow(sequences: Sequence[list[int]]) -> list[Tree]:
    """Trees that hold each sequence once; equal ones share all their places. Deterministic."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    trees: list[Tree] = []
    last: Sequence[int] = []
    room = 0
    for member in order:
        sequence = sequences[member]
        shared = _shared(last, sequence)
        if trees and _joins(shared, len(sequence)) and len(sequence) - shared <= room:
            trees[-1].add(member, sequence, shared)
            room -= len(sequence) - shared
        else:
            trees.append(Tree())
            trees[-1].add(member, sequence, 0)
            room = MOST_BESIDES
        last = sequence
    return trees


def hidden(model: Transformer, trees: Sequence[Tree]) -> Tensor:
    """Vectors of all places [B, T, D], a row a tree; padding stands on the right."""
    device, width = model.head_weight.device, max(len(tree.tokens) for tree in trees)
    tokens_BT = np.zeros((len(trees), width), dtype=np.int64)
    for row, tree in enumerate(trees):
        tokens_BT[row, : len(tree.tokens)] = tree.tokens
    tokens = torch.from_numpy(tokens_BT).to(device)
    mask = _mask(trees, width, device)
    if mask is None:
        return model.hidden(tokens)
    positions_BT = np.zeros_like(tokens_BT)
    for row, tree in enumerate(trees):
        positions_BT[row, : len(tree.tokens)] = tree.positions
    return model.hidden(tokens, positions=torch.from_numpy(positions_BT).to(device), attention_mask=mask)


def flat_hidden(decoder: Decoder, trees: Sequence[Tree]) -> Tensor:
    """Vectors of all places [N, D], tree after tree, for `decoder.logits`; nothing is padded but in attention."""
    lengths = [len(tree.tokens) for tree in trees]
    tokens_N = torch.tensor([token for tree in trees for token in tree.tokens], device=decoder.device)
    positions_N = torch.tensor([position for tree in trees for position in tree.positions], device=decoder.device)
    mask = _mask(trees, max(lengths), decoder.device)
    return decoder.hidden(
        tokens_N, positions_N, Places.of(lengths, decoder.device), None if mask is None else mask[:, None]
    )


def _mask(trees: Sequence[Tree], width: int, device: torch.device) -> Tensor | None:
    """Where each place may look [B, T, T]; None where causal attention says the same."""
    if all(tree.plain for tree in trees):
        return None
    mask_BTT = np.empty((len(trees), width, width), dtype=np.bool_)
    for row, tree in enumerate(trees):
        mask_BTT[row] = tree.mask(width)
    return torch.from_numpy(mask_BTT).to(device)


def _joins(shared: int, length: int) -> bool:
    return shared == length or (shared >= LEAST_SHARED and shared >= LEAST_SHARE * length)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(i for i in range(most) if one[i] != other[i])
