"""Continuous batching: rows join and leave between steps, and every step adds one token to each row.

Notable:
- A row's tokens depend on its request alone (prompt, settings, seed), never on the rows beside it.
- A row that has ended leaves at once: the last row takes its place in the cache.
- Requests with the same prompt that join together are read once.
- Plain calls, no threads: who serves many callers gives the engine a thread of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.model.choosing import Choice, Picker
from llm_core.model.decoder import Decoder
from llm_core.model.transformer import Transformer

SLOTS = 64
"""The cache grows by so many positions, or doubles."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to draw."""

    prompt: Sequence[int]
    """1 to context - 1 token ids."""
    max_new_tokens: int
    """At least 1; fewer are drawn where the context ends first."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    """These four are those of `Choice`."""
    stop_ids: Collection[int] = frozenset()
    """Tokens that end the answer, of which they are part."""
    seed: int | tuple[int, ...] = 0
    """Not negative. The random numbers depend on it alone."""
    top_logprobs: int = 0
    """How many of the most likely tokens to report at every step."""
    until: Callable[[Sequence[int]], bool] | None = None
    """Called with the answer so far after each token; true ends it (stop strings: `sampling.stop_at_text`)."""


class Drawn(NamedTuple):
    """One new token of one row."""

    handle: int
    token: int
    logprob: float
    """Of the token under the model at the row's temperature (1 when greedy), before penalty, top-k and top-p."""
    finished: str
    """Empty while the row goes on; `stop`: a stop token or `until`; `length`: max_new_tokens or the context reached."""
    top: tuple[tuple[int, float], ...]
    """The `top_logprobs` most likely tokens with their log-probabilities, best first."""


@dataclass(slots=True, eq=False)
class _Row:
    handle: int
    request: Request
    choice: Choice
    limit: int
    random: np.ndarray
    tokens: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Of the last token, which the model has not read yet."""
        return len(self.request.prompt) + len(self.tokens) - 1


class Engine:
    """Draws tokens for up to `max_rows` requests side by side; more wait in order of arrival.

    It reads a copy of the model's weights; `refresh` takes a new one. `prefill_tokens`: how many prompt tokens may be
    read in one step (one prompt at least), so that rows under way do not wait long. `join`: free rows are filled in
    multiples of this. `dtype`: of weights, cache and arithmetic (None: the model's own).
    """

    def __init__(
        self,
        model: Transformer,
        max_rows: int = 64,
        *,
        prefill_tokens: int = 8192,
        join: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 1 <= join <= max_rows:
            raise BadInput(f"max_rows, join: {max_rows} rows, filled {join} at a time; 1 <= join <= max_rows is needed")
        self.model, self.dtype = model, dtype
        self.max_rows, self.prefill_tokens, self.join = max_rows, prefill_tokens, join
        self.rows: list[_Row] = []
        self.queue: deque[_Row] = deque()
        self.handles = 0
        self.picker: Picker | None = None
        self.seen_RV: Tensor | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read the model's weights again. Rows under way go on with keys and values of the old ones."""
        self.decoder = Decoder(self.model, self.dtype)
        if not self.rows:
            self.cache = self.decoder.new_rows()

    @property
    def active(self) -> int:
        """Rows in the batch."""
        return len(self.rows)

    @property
    def waiting(self) -> int:
        """Requests that have not joined yet."""
        return len(self.queue)

    def add(self, request: Request) -> int:
        """Queue a request; its handle. Raises `BadInput` for settings or a prompt that cannot be used."""
        row = _Row(self.handles, request, *_checked(request, self.model))
        self.handles += 1
        self.queue.append(row)
        return row.handle

    @torch.inference_mode()
    def remove(self, handle: int) -> None:
        """Drop a request, waiting or under way; one that has ended, or never was, is ignored."""
        self.queue = deque(row for row in self.queue if row.handle != handle)
        for place, row in enumerate(self.rows):
            if row.handle == handle:
                self._leave(place)
                return

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """Let waiting requests join, then draw one token for every row; nothing when there is no row."""
        logits = [self._advance()] if self.rows else []
        joined = self._joining()
        if joined:
            logits.append(self._read(joined))
        if not logits:
            return []
        drawn = self._draw(torch.cat(logits) if len(logits) > 1 else logits[0])
        for place in range(len(drawn) - 1, -1, -1):
            if drawn[place].finished:
                self._leave(place)
        return drawn

    def _advance(self) -> Tensor:
        tokens_B = torch.tensor([row.tokens[-1] for row in self.rows], device=self.decoder.device)
        positions = [row.position for row in self.rows]
        return self.decoder.step(
            tokens_B, torch.tensor(positions, device=self.decoder.device), self.cache, max(positions) + 1
        )

    def _joining(self) -> list[_Row]:
        """The waiting rows that join now."""
        free = (self.max_rows - len(self.rows)) // self.join * self.join
        joined: list[_Row] = []
        read: set[tuple[int, ...]] = set()
        tokens = 0
        while self.queue and len(joined) < free:
            prompt = tuple(self.queue[0].request.prompt)
            if prompt not in read:
                tokens += len(prompt)
                if joined and tokens > self.prefill_tokens:
                    break
                read.add(prompt)
            joined.append(self.queue.popleft())
        return joined

    def _read(self, joined: list[_Row]) -> Tensor:
        """Read the new rows' prompts into the cache; logits after each of them."""
        distinct: dict[tuple[int, ...], int] = {}
        sources = [distinct.setdefault(tuple(row.request.prompt), len(distinct)) for row in joined]
        self._reserve(joined)
        targets = torch.arange(len(self.rows), len(self.rows) + len(joined), device=self.decoder.device)
        source_B = torch.tensor(sources, device=self.decoder.device)
        logits_UV = self.decoder.read(list(distinct), self.cache, targets, source_B)
        self.rows += joined
        self.picker = None
        for place, row in enumerate(joined, start=len(self.rows) - len(joined)):
            self._remember(place, row.choice, row.request.prompt)
        return logits_UV[source_B]

    def _reserve(self, joined: list[_Row]) -> None:
        rows, slots = self.cache.keys.shape[1], self.cache.keys.shape[3]
        needed = max(len(row.request.prompt) + row.limit - 1 for row in joined)
        if needed > slots:
            slots = min(max(2 * slots, -(-needed // SLOTS) * SLOTS), self.model.config.context)
        if len(self.rows) + len(joined) > rows:
            rows = min(max(2 * rows, len(self.rows) + len(joined)), self.max_rows)
        self.cache.reserve(rows, slots)

    def _remember(self, place: int, choice: Choice, tokens: Sequence[int]) -> None:
        """Note the tokens of a row's text, where a penalty asks for them."""
        if choice.repetition_penalty == 1:
            return
        if self.seen_RV is None:
            shape = (self.max_rows, self.model.config.vocab_size)
            self.seen_RV = torch.zeros(shape, dtype=torch.bool, device=self.decoder.device)
        self.seen_RV[place] = False
        self.seen_RV[place, torch.tensor(tokens, device=self.decoder.device)] = True

    def _draw(self, logits_BV: Tensor) -> list[Drawn]:
        if self.picker is None:
            self.picker = Picker([row.choice for row in self.rows], self.decoder.device)
        random_B = torch.tensor([row.random[len(row.tokens)] for row in self.rows], device=self.decoder.device)
        seen_BV = None if self.seen_RV is None else self.seen_RV[: len(self.rows)]
        chosen_B, logprob_B = self.picker.pick(logits_BV, seen_BV, random_B)
        if self.picker.penalised and seen_BV is not None:
            seen_BV.scatter_(1, chosen_B[:, None], True)
        tops = self._tops(logits_BV)
        drawn = []
        for place, (row, token, logprob) in enumerate(
            zip(self.rows, chosen_B.tolist(), logprob_B.tolist(), strict=True)
        ):
            row.tokens.append(token)
            drawn.append(Drawn(row.handle, token, logprob, _finished(row), tops.get(place, ())))
        return drawn

    def _tops(self, logits_BV: Tensor) -> dict[int, tuple[tuple[int, float], ...]]:
        """The most likely tokens of the rows that ask for them."""
        asking = [place for place, row in enumerate(self.rows) if row.request.top_logprobs]
        if not asking or self.picker is None:
            return {}
        most = max(self.rows[place].request.top_logprobs for place in asking)
        shares = self.picker.scores(logits_BV).log_softmax(dim=1)[torch.tensor(asking, device=logits_BV.device)]
        best = shares.topk(min(most, shares.shape[1]), dim=1)
        pairs = [
            tuple(zip(tokens, values, strict=True))
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return {place: pair[: self.rows[place].request.top_logprobs] for place, pair in zip(asking, pairs, strict=True)}

    def _leave(self, place: int) -> None:
        """Drop a row; the last one takes its place."""
        last = self.rows.pop()
        self.picker = None
        if place == len(self.rows):
            return
        self.rows[place] = last
        self.cache.move(len(self.rows), place, last.position)
        if self.seen_RV is not None:
            self.seen_RV[place] = self.seen_RV[len(self.rows)]


def _finished(row: _Row) -> str:
    if row.tokens[-1] in row.request.stop_ids:
        return "stop"
    if row.request.until is not None and row.request.until(row.tokens):
        return "stop"
    return "length" if len(row.tokens) >= row.limit else ""


def _checked(request: Request, model: Transformer) -> tuple[Choice, int, np.ndarray]:
    """A request's choice, its greatest number of tokens and as many random numbers."""
    config, prompt = model.config, request.prompt
    if not 0 < len(prompt) < config.context:
        raise BadInput(f"prompt: {len(prompt)} tokens; the context takes 1 to {config.context - 1}")
    strange = [token for token in (min(prompt), max(prompt)) if not 0 <= token < config.vocab_size]
    if strange:
        raise BadInput(f"prompt: token {strange[0]} is not in the vocabulary, 0 to {config.vocab_size - 1}")
    if request.max_new_tokens < 1:
        raise BadInput(f"max_new_tokens: {request.max_new_tokens} must be at least 1")
    if request.top_logprobs < 0:
        raise BadInput(f"top_logprobs: {request.top_logprobs} must be at least 0")
    key = (request.seed,) if isinstance(request.seed, int) else request.seed
    if min(key, default=0) < 0:
        raise BadInput(f"seed: {min(key)} must not be negative")
    choice = Choice(request.temperature, request.top_k, request.top_p, request.repetition_penalty)
    choice.check()
    limit = min(request.max_new_tokens, config.context + 1 - len(prompt))
    random = np.random.default_rng(key).random(limit) if request.temperature else np.zeros(limit)
    return choice, limit, random
