"""Votes as a table, and votes as batches of token pairs.

The table `pairs.parquet` keeps every vote with its kind of rater, so that nobody has to guess what a model was tuned
on. Training takes only clear votes (one side preferred), and only of the pool it was told to take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode, encode_prompt
from llm_core.feedback.raters import CLEAR, Preference

Messages = list[dict[str, str]]
RaterKind = Literal["simulated", "person", "dataset"]
Pool = Literal["votes", "dataset", "both"]
POOLS: dict[Pool, tuple[RaterKind, ...]] = {
    "votes": ("person", "simulated"),
    "dataset": ("dataset",),
    "both": ("person", "simulated", "dataset"),
}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("answer_a", pa.string()),
        ("answer_b", pa.string()),
        ("preference", pa.string()),
        ("rater", pa.string()),
        ("check", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Vote:
    """Two answers to one prompt and what one rater said. `group` holds together what must not be split; `source` names
    the dataset, or is "people" or "simulated"."""

    id: str
    prompt: Messages
    answer_a: str
    answer_b: str
    preference: Preference
    rater: RaterKind
    check: str | None
    group: str
    split: Literal["train", "validation"]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with the answer that was preferred and the one that was not."""

    prompt: Messages
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of prompt and answer together, closing token included, and how many at the end are the answer's."""

    chosen: list[int]
    rejected: list[int]
    chosen_answer: int
    rejected_answer: int


@dataclass(frozen=True, slots=True)
class PairBatch:
    """P pairs as 2P sequences, the chosen ones first, padded on the right; the mask is 1 on answer tokens."""

    tokens_BT: Tensor
    mask_BT: Tensor
    last_B: Tensor
    """Index of each sequence's last token."""
    rows_P: Tensor
    """Which pairs these are."""

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on another device."""
        return PairBatch(*(part.to(device) for part in (self.tokens_BT, self.mask_BT, self.last_B, self.rows_P)))


def text_id(*parts: str) -> str:
    """A stable id of texts: 128 bits of SHA-256 in hex."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def prompt_text(prompt: Messages) -> str:
    """The prompt as one text, for ids and groups."""
    return "\x1e".join(f"{message['role']}: {message['content']}" for message in prompt)


def split_of(group: str, validation_share: float) -> Literal["train", "validation"]:
    """A pure function of the group's name, so that a prompt's pairs stay together and runs agree."""
    number = int(hashlib.sha256(f"votes:{group}".encode()).hexdigest()[:12], 16) / 16**12
    return "validation" if number < validation_share else "train"


def write_votes(path: Path, votes: Iterable[Vote]) -> None:
    """Write the votes, sorted by rater and id."""
    ordered = sorted(votes, key=lambda vote: (vote.rater, vote.id))
    pq.write_table(pa.Table.from_pylist([asdict(vote) for vote in ordered], schema=SCHEMA), path)


def read_votes(folder: Path) -> list[Vote]:
    """The votes of a product of the stage collect."""
    return [Vote(**row) for row in pq.read_table(folder / "pairs.parquet", schema=SCHEMA).to_pylist()]


def clear_pairs(votes: Iterable[Vote], pool: Pool, split: str, sources: Sequence[str] = ()) -> list[Pair]:
    """Pairs of the pool and split in which one of two different answers was preferred; `sources`: only of these."""
    chosen = [vote for vote in votes if vote.rater in POOLS[pool] and vote.split == split and vote.preference in CLEAR]
    chosen = [vote for vote in chosen if not sources or vote.source in sources]
    pairs = [
        Pair(
            vote.prompt, *((vote.answer_a, vote.answer_b) if vote.preference == "a" else (vote.answer_b, vote.answer_a))
        )
        for vote in chosen
    ]
    return [pair for pair in pairs if pair.chosen != pair.rejected]


def training_pairs(
    votes: Sequence[Vote], pool: Pool, section: str, sources: Sequence[str] = ()
) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) clear pairs of the pool, of these sources if any are named.

    Raises `BadInput` if there is no vote at all of this kind.
    """
    found = [vote for vote in votes if vote.rater in POOLS[pool]]
    if not found:
        raise BadInput(
            f"{section}.pool = {pool!r}: there is no vote of this kind, only of {_raters(votes) or 'nobody'}"
        )
    if missing := sorted(set(sources) - {vote.source for vote in found}):
        known = ", ".join(sorted({vote.source for vote in found}))
        raise BadInput(f"{section}.heads: the pool {pool!r} has no pair of source {missing[0]!r}, only of {known}")
    return clear_pairs(found, pool, "train", sources), clear_pairs(found, pool, "validation", sources)


def _raters(votes: Sequence[Vote]) -> str:
    return ", ".join(sorted({vote.rater for vote in votes}))


def too_few(train: Sequence[object], held_out: Sequence[object], least: int) -> str:
    """Why nothing can be learned from so few pairs, as a sentence; empty if there are enough.

    It is no error of the user's: a model that is always wrong, or always right, gives no clear votes.
    """
    if len(train) >= least and held_out:
        return ""
    return f"too few clear votes: {len(train)} to train on ({least} are needed), {len(held_out)} held out (1 is needed)"


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, context: int) -> list[EncodedPair]:
    """Token ids of the pairs; a pair with a sequence longer than `context` is left out."""
    encoded = []
    for pair in pairs:
        start = len(encode_prompt(pair.prompt, tokenizer))
        sequences = [
            encode([*pair.prompt, {"role": "assistant", "content": answer}], tokenizer)[0]
            for answer in (pair.chosen, pair.rejected)
        ]
        if max(map(len, sequences)) <= context:
            chosen, rejected = sequences
            encoded.append(EncodedPair(chosen, rejected, len(chosen) - start, len(rejected) - start))
    return encoded


def collate(pairs: Sequence[EncodedPair], rows: Sequence[int]) -> PairBatch:
    """The pairs numbered `rows` as one padded batch."""
    sequences = [pairs[row].chosen for row in rows] + [pairs[row].rejected for row in rows]
    answers = [pairs[row].chosen_answer for row in rows] + [pairs[row].rejected_answer for row in rows]
    lengths = [len(sequence) for sequence in sequences]
    tokens = np.zeros((len(sequences), max(lengths)), dtype=np.int64)
    mask = np.zeros(tokens.shape, dtype=np.float32)
    for i, (sequence, answer) in enumerate(zip(sequences, answers, strict=True)):
        tokens[i, : len(sequence)] = sequence
        mask[i, len(sequence) - answer : len(sequence)] = 1.0
    return PairBatch(
        torch.from_numpy(tokens), torch.from_numpy(mask), torch.tensor(lengths) - 1, torch.tensor(list(rows))
    )


def epochs(count: int, size: int, seed: int) -> Callable[[int], list[int]]:
    """Rows of a step's batch: a pure function of the step that goes through a fresh shuffle in every epoch."""

    def rows(step: int) -> list[int]:
        first = step * size
        return [int(_shuffle(count, seed, place // count)[place % count]) for place in range(first, first + size)]

    return rows


def in_order(count: int, size: int) -> Iterable[range]:
    """Ranges that cover 0 .. count - 1 in pieces of at most `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


@lru_cache(maxsize=4)
def _shuffle(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
