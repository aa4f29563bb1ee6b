"""Bits per byte on held-out pages, in all and by source: comparable between models with different tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_core.data.shards import Shards
from llm_core.model.transformer import Transformer
from llm_core.train.heldout import bits_per_byte, document_nats, spread


@dataclass(frozen=True)
class HeldOutPages:
    """Token ids of held-out pages by source, with the UTF-8 bytes of their text."""

    end_id: int
    tokens: dict[str, list[np.ndarray]]
    text_bytes: dict[str, int]
    digest: str


def held_out_pages(shards: Shards, most_tokens: int) -> HeldOutPages:
    """Pages of the validation split, evenly spread within each source, about `most_tokens` tokens in all."""
    stream, offsets = shards.tokens("validation"), shards.offsets("validation")
    share = min(1.0, most_tokens / max(1, len(stream)))
    end_id, digest = shards.tokenizer.end_id, hashlib.sha256()
    tokens: dict[str, list[np.ndarray]] = {}
    text_bytes: dict[str, int] = {}
    for source, (first, stop) in sorted(shards.sources("validation").items()):
        picked = [first + i for i in spread(stop - first, round(share * (stop - first)))] if stop > first else []
        tokens[source] = [np.asarray(stream[int(offsets[i]) : int(offsets[i + 1])], dtype=np.int64) for i in picked]
        texts = [shards.tokenizer.decode([t for t in page.tolist() if t != end_id]) for page in tokens[source]]
        encoded = [text.encode() for text in texts]
        text_bytes[source] = sum(map(len, encoded))
        for page in encoded:
            digest.update(hashlib.sha256(page).digest())
    return HeldOutPages(end_id, tokens, text_bytes, digest.hexdigest())


def page_bits_per_byte(model: Transformer, pages: HeldOutPages) -> dict[str, float]:
    """Bits per byte by source, and over all pages under the name "all"."""
    nats = {source: _nats(model, documents, pages.end_id) for source, documents in pages.tokens.items() if documents}
    figures = {source: bits_per_byte(value, pages.text_bytes[source]) for source, value in nats.items()}
    total = sum(pages.text_bytes[source] for source in nats)
    return figures | ({"all": bits_per_byte(sum(nats.values()), total)} if total else {})


def _nats(model: Transformer, documents: Sequence[np.ndarray], end_id: int) -> float:
    return document_nats(model, documents, end_id)[0]
