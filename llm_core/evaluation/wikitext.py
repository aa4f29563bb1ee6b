"""Perplexity of a whole text with a sliding window, as transformers' guide "Perplexity of fixed-length models" does it.

A window of `context` tokens moves on by `stride`; of each but the first, only what the window before it did not hold is
scored. Per token the figure depends on the tokenizer, so words are what the literature divides by: for WikiText-2 all
between white space, and one for each line's end (245,569 of the test set, <unk> among them; Merity et al. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_core.data.bpe import Tokenizer
from llm_core.evaluation.likelihood import continuations
from llm_core.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Window:
    """-log p in nats over so many scored tokens."""

    nats: float
    tokens: int


def sliding_windows(model: Transformer, tokens: list[int], stride: int) -> list[Window]:
    """The windows of a text of at least two tokens; the first token, before which nothing stands, is not scored."""
    context = model.config.context
    requests, end = [], 0
    for begin in range(0, len(tokens), stride):
        stop = min(begin + context, len(tokens))
        first = max(end, 1)
        requests.append((tokens[begin:first], tokens[first:stop]))
        end = stop
        if stop == len(tokens):
            break
    found = continuations(model, requests)
    return [Window(-one.logprob, len(scored)) for one, (_, scored) in zip(found, requests, strict=True)]


def count_words(text: str) -> int:
    """Words between white space, and one for the end of each line."""
    return sum(len(line.split()) + 1 for line in text.splitlines())


def perplexities(model: Transformer, tokenizer: Tokenizer, text: str, stride: int | None = None) -> dict[str, float]:
    """Perplexity by word and by token, and bits per byte. `stride` in tokens (None: half the context)."""
    tokens = tokenizer.encode(text)
    windows = sliding_windows(model, tokens, stride or max(1, model.config.context // 2))
    nats = math.fsum(window.nats for window in windows)
    return {
        "word_perplexity": math.exp(min(700.0, nats / count_words(text))),
        "token_perplexity": math.exp(nats / sum(window.tokens for window in windows)),
        "bits_per_byte": nats / math.log(2) / len(text.encode()),
    }
