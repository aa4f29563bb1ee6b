"""Held-out likelihood of documents: nats over every token, with a sliding window so that no token lacks context.

Each document stands alone, preceded by the end token. A window of `context` tokens moves on by `stride`; of each
window but the first only the last `stride` tokens are scored, so each has at least context - stride tokens before it.
Bits per byte = nats / ln 2 / UTF-8 bytes: it compares models with different tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from llm_core.data.shards import Shards
from llm_core.model.transformer import Transformer
from llm_core.train.batches import collate, next_token_loss

Piece = tuple[np.ndarray, np.ndarray]


def document_nats(
    model: Transformer,
    documents: Sequence[np.ndarray],
    end_id: int,
    *,
    stride: int | None = None,
    batch_tokens: int = 4096,
    lanes: int = 1,
) -> tuple[float, int]:
    """Sum of -log p over all tokens of `documents` (their closing end token included), and the number of tokens.

    `stride` in tokens (None: half the context). `lanes`: batches that run side by side in threads.
    """
    context = model.config.context
    pieces = [piece for document in documents for piece in _windows(document, end_id, context, stride or context // 2)]
    pieces.sort(key=lambda piece: len(piece[0]))
    rows = max(1, batch_tokens // context)
    chunks = [pieces[start : start + rows] for start in range(0, len(pieces), rows)]
    with ThreadPoolExecutor(lanes) as pool:
        scored = list(pool.map(partial(_score, model), chunks))
    return math.fsum(nats for nats, _ in scored), sum(count for _, count in scored)


@torch.inference_mode()
def _score(model: Transformer, pieces: Sequence[Piece]) -> tuple[float, int]:
    batch = collate([tokens for tokens, _ in pieces], [mask for _, mask in pieces], model.config.context)
    loss = next_token_loss(model, batch)
    return float(loss.total), int(loss.count)


def _windows(document: np.ndarray, end_id: int, context: int, stride: int) -> Iterator[Piece]:
    """Pieces of up to context + 1 tokens with a mask on those that are scored, each token of the document once."""
    tokens = np.concatenate(([end_id], np.asarray(document, dtype=np.int64)))
    scored = 1
    while scored < len(tokens):
        stop = min(context + 1, len(tokens)) if scored == 1 else min(scored + stride, len(tokens))
        start = max(0, stop - context - 1)
        yield tokens[start:stop], np.arange(start, stop) >= scored
        scored = stop


def glance(model: Transformer, data: Shards, tokens: int, *, lanes: int = 1) -> tuple[float, float]:
    """(nats a token, bits per byte) on about `tokens` tokens of held-out pages, evenly spread over their documents.

    (nan, nan) if no page is held out.
    """
    stream, offsets = data.tokens("validation"), data.offsets("validation")
    count = len(offsets) - 1
    if count < 1:
        return math.nan, math.nan
    documents = [stream[offsets[i] : offsets[i + 1]] for i in spread(count, round(count * tokens / len(stream)))]
    nats, scored = document_nats(model, documents, data.tokenizer.end_id, lanes=lanes)
    return nats / scored, bits_per_byte(nats / scored, 1) / (data.text_bytes("validation") / len(stream))


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Nats over a text as bits for each of its UTF-8 bytes."""
    return nats / math.log(2) / text_bytes


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` indices, evenly spread, so that a part of the documents stands for all of them."""
    taken = max(1, min(count, wanted))
    return [index * count // taken for index in range(taken)]
