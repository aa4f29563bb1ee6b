"""Batches as pure functions of (seed, number): whoever asks for batch 1000 gets the same one, resumed or not.

Pages are cut into windows of `context` tokens, in a new order each epoch and with a new offset, so that the cuts fall
elsewhere. Dialogues are drawn by kind, padded on the right, with a mask on what is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.model.transformer import Transformer
from llm_core.train.fused_loss import fused_cross_entropy
from llm_core.train.gradients import Loss
from llm_core.train.loss import cross_entropy
from llm_core.train.machine import Machine
from llm_core.train.packing import deal, lay_out


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Inputs [B, T], the tokens that follow them [B, T], and which of those count (None: all)."""

    inputs_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor | None = None
    counted_N: Tensor | None = None
    """The counted places of the flattened batch, found before it goes to a GPU, which would have to be waited for."""
    segments_BT: Tensor | None = None
    """Numbers of the texts packed into a row, none of which sees another (None: a row is one text)."""


def next_token_loss(model: Transformer, batch: TokenBatch, z_loss: float = 0.0) -> Loss:
    """Cross-entropy of the next token over the counted positions; only those pass through the output head.

    `z_loss`: weight of the squared log-sum-exp of the logits (see `cross_entropy`).
    """
    device = model.head_weight.device
    segments_BT = None if batch.segments_BT is None else batch.segments_BT.to(device)
    hidden_ND = model.hidden(batch.inputs_BT.to(device), segments=segments_BT).flatten(0, 1)
    targets_N = batch.targets_BT.to(device).flatten()
    if batch.mask_BT is not None:
        found = batch.mask_BT.flatten().nonzero().flatten() if batch.counted_N is None else batch.counted_N
        rows_N = found.to(device)
        hidden_ND, targets_N = hidden_ND[rows_N], targets_N[rows_N]
    whole = batch.mask_BT is None and model.training and device.type == "cuda"
    entropy = fused_cross_entropy if whole else cross_entropy
    total = entropy(hidden_ND, model.head_weight, targets_N, softcap=model.config.softcap, z_loss=z_loss)
    return Loss(total, float(len(targets_N)), tokens=batch.inputs_BT.numel())


def next_token_loss_on(machine: Machine, z_loss: float = 0.0) -> Callable[[Transformer, TokenBatch], Loss]:
    """`next_token_loss` in the machine's number format."""

    def loss(model: Transformer, batch: TokenBatch) -> Loss:
        with machine.autocast():
            return next_token_loss(model, batch, z_loss)

    return loss


def _order(seed: int, stream: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, stream, epoch)).permutation(count)


class Windows:
    """Windows of `context` + 1 tokens of one long stream, each epoch in a new order and from a new offset."""

    def __init__(self, tokens: Callable[[int], np.ndarray], context: int, seed: int, stream: int = 0) -> None:
        """`tokens(epoch)` is the stream of an epoch, of equal length each time. `stream` sets seeds apart."""
        self.tokens, self.context, self.seed, self.stream = lru_cache(maxsize=1)(tokens), context, seed, stream
        found = self.tokens(0)
        if not np.issubdtype(found.dtype, np.integer):
            raise BadInput(f"shards: token ids are {found.dtype}, not whole numbers; run tokenize again")
        self.length = len(found)
        self.count = (self.length - 1) // context - 1
        if self.count < 1:
            raise BadInput(f"model.context: {self.length} tokens are too few for windows of {context} tokens")
        self._epoch = lru_cache(maxsize=1)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        offset = int(np.random.default_rng((self.seed, self.stream, epoch, 1)).integers(self.context))
        return offset, _order(self.seed, self.stream, epoch, self.count)

    def window(self, number: int) -> np.ndarray:
        """Window `number` of the endless sequence of epochs: [context + 1]."""
        epoch, place = divmod(number, self.count)
        offset, order = self._epoch(epoch)
        start = offset + int(order[place]) * self.context
        return np.asarray(self.tokens(epoch)[start : start + self.context + 1], dtype=np.int64)


class PageBatches:
    """Batches of windows of pages, of which an even share may be windows of dialogues.

    The `rows` windows of a step are cut into `parts` batches.
    """

    def __init__(
        self,
        pages: Windows,
        dialogues: Windows | None,
        share: float,
        rows: int,
        parts: int = 1,
        vocab_size: int | None = None,
    ) -> None:
        """`vocab_size`: ids of the model, from which a larger one in the shards is refused (None: not looked at).

        Raises `BadInput` if one step would take more windows than there are.
        """
        self.pages, self.dialogues = pages, dialogues
        self.share = share if dialogues is not None else 0.0
        self.rows, self.parts, self.vocab_size = rows, parts, vocab_size
        if rows * (1 - self.share) > pages.count:
            size = f"{pages.count} windows of {pages.context} from {pages.length} tokens"
            raise BadInput(f"batch_sequences: {rows} sequences a step are more than there are ({size}); lower it")

    def __call__(self, number: int) -> TokenBatch:
        """Batch `number`, part number % parts of step number // parts: inputs and targets [rows / parts, context]."""
        step, part = divmod(number, self.parts)
        places = range(part * self.rows // self.parts, (part + 1) * self.rows // self.parts)
        found = np.stack([self._row(step * self.rows + place) for place in places])
        highest = int(found.max())
        if self.vocab_size is not None and highest >= self.vocab_size:
            raise BadInput(
                f"shards: token id {highest} is beyond the model's vocabulary of {self.vocab_size}; "
                "its ids are read in the wrong format or come from another tokenizer, so run tokenize again"
            )
        rows = torch.from_numpy(found)
        return TokenBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    def _row(self, number: int) -> np.ndarray:
        before, after = int(number * self.share + 1e-9), int((number + 1) * self.share + 1e-9)
        if self.dialogues is not None and after > before:
            return self.dialogues.window(before)
        return self.pages.window(number - before)


def shuffled_stream(tokens: np.ndarray, offsets: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
    """A stream of all pieces tokens[offsets[i]:offsets[i + 1]], one after the other, in a new order each epoch."""

    def stream(epoch: int) -> np.ndarray:
        order = _order(seed, 2, epoch, len(offsets) - 1)
        return np.concatenate([tokens[offsets[i] : offsets[i + 1]] for i in order])

    return stream


def collate(pieces: Sequence[np.ndarray], masks: Sequence[np.ndarray], context: int) -> TokenBatch:
    """Pad token sequences on the right; those longer than `context` + 1 are cut there."""
    longest = min(max(len(piece) for piece in pieces), context + 1)
    tokens_BT = np.zeros((len(pieces), longest), dtype=np.int64)
    mask_BT = np.zeros((len(pieces), longest), dtype=bool)
    for row, (piece, mask) in enumerate(zip(pieces, masks, strict=True)):
        tokens_BT[row, : len(piece)] = piece[:longest]
        mask_BT[row, : len(mask)] = mask[:longest]
    tokens, counted_BT = torch.from_numpy(tokens_BT), torch.from_numpy(mask_BT[:, 1:].copy())
    counted_N = counted_BT.flatten().nonzero().flatten()
    return TokenBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), counted_BT, counted_N)


def collate_packed(pieces: Sequence[np.ndarray], masks: Sequence[np.ndarray], context: int) -> TokenBatch:
    """Token sequences laid end to end in rows of up to `context`, none of which sees another (see packing.py)."""
    rows = lay_out(pieces, masks, context)
    inputs_BT, targets_BT = torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)
    counted_BT, segments_BT = torch.from_numpy(rows.counted), torch.from_numpy(rows.segments)
    return TokenBatch(inputs_BT, targets_BT, counted_BT, counted_BT.flatten().nonzero().flatten(), segments_BT)


class DialogueBatches:
    """Batches of dialogues, a fixed number of each group in every step, each group in a new order each epoch.

    Windows of pages may stand among them. The sequences of one step are cut into `parts` batches: packed ones so that
    all parts hold alike many tokens, padded ones by length, so that short ones are not padded to the long.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        masks: np.ndarray,
        offsets: np.ndarray,
        groups: Sequence[tuple[np.ndarray, int]],
        *,
        context: int,
        seed: int,
        parts: int = 1,
        packed: bool = False,
        pages: tuple[Windows, int] | None = None,
    ) -> None:
        """`groups`: indices of dialogues, and how many of them a step takes; `pages`: windows, and how many."""
        self.tokens, self.masks, self.offsets = tokens, masks, offsets
        self.groups = [(indices, take) for indices, take in groups if take]
        self.context, self.seed, self.parts, self.packed, self.pages = context, seed, parts, packed, pages
        if not self.groups or any(len(indices) == 0 for indices, _ in self.groups):
            raise BadInput("batch_dialogues: a kind of dialogue that every step should take from has none")
        self._epoch = lru_cache(maxsize=8)(_order)

    def __call__(self, number: int) -> TokenBatch:
        """Batch `number`: part number % parts of step number // parts."""
        step, part = divmod(number, self.parts)
        cuts = [slice(int(self.offsets[i]), int(self.offsets[i + 1])) for i in self._chosen(step)]
        found = [(self.tokens[cut], self.masks[cut]) for cut in cuts]
        windows, take = self.pages or (None, 0)
        if windows is not None:
            texts = [windows.window(place) for place in range(step * take, (step + 1) * take)]
            found += [(text, np.ones(len(text), dtype=bool)) for text in texts]
        lengths = [min(len(text), self.context + 1) for text, _ in found]
        if self.packed:
            places = deal(lengths, self.parts)[part]
        else:
            ordered = sorted(range(len(found)), key=lambda place: (lengths[place], place))
            places = ordered[part * len(ordered) // self.parts : (part + 1) * len(ordered) // self.parts]
        make = collate_packed if self.packed else collate
        return make([found[place][0] for place in places], [found[place][1] for place in places], self.context)

    def _chosen(self, step: int) -> list[int]:
        """Dialogues of a step, in an order that does not depend on how the step is cut."""
        chosen = []
        for stream, (indices, take) in enumerate(self.groups):
            for number in range(step * take, (step + 1) * take):
                epoch, place = divmod(number, len(indices))
                chosen.append(int(indices[self._epoch(self.seed, 10 + stream, epoch, len(indices))[place]]))
        return sorted(chosen, key=lambda i: (int(self.offsets[i + 1] - self.offsets[i]), i))
