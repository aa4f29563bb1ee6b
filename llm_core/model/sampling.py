"""Answers to many prompts at once, drawn by the engine.

Notable:
- A prompt is read once, however many answers are drawn from it.
- Rows that have ended cost nothing: they leave, and waiting prompts take their place.
- The random numbers of an answer depend on (seed, prompt, sample, position) only, never on the batch it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from llm_core.contract import BadInput
from llm_core.model.engine import Engine, Request
from llm_core.model.transformer import Transformer

REFILL = 4
"""New rows join once this part of the batch is free (1 / REFILL): reading few prompts at a time costs more a prompt."""


@dataclass(slots=True)
class Completion:
    """A drawn answer. `finished`: it ended with a stop (a stop token is part of `tokens`), not for want of room."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each token under the model at the given temperature (1 when greedy), before the repetition
    penalty, top-k and top-p."""
    finished: bool = False


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop_ids: Collection[int] = frozenset(),
    until: Callable[[Sequence[int]], bool] | None = None,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 256,
    told: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """Answers to each prompt: the outer list follows `prompts`, the inner one has `samples` entries.

    temperature 0 takes the most likely token. `top_k` 0 and `top_p` 1 leave all tokens. `until` ends an answer when it
    says so of the tokens so far. `batch_size`: rows (prompts times samples) at a time. `told` hears how many answers
    have ended, whenever some have. An answer also ends when the model's context is full. Raises `BadInput` for an empty
    prompt, one that leaves no room in the context, and settings that mean nothing.
    """
    if samples < 1:
        raise BadInput(f"samples: {samples} must be at least 1")
    if not prompts:
        return []
    context = model.config.context
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise BadInput(f"prompts: prompt {index} has {len(prompt)} tokens; the context takes 1 to {context - 1}")
    rows = max(samples, batch_size // samples * samples)
    engine = Engine(model, rows, join=max(samples, rows // REFILL // samples * samples), prefill_tokens=rows * context)
    stops = frozenset(stop_ids)
    answers = [[Completion() for _ in range(samples)] for _ in prompts]
    under_way: dict[int, Completion] = {}
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        for sample, answer in enumerate(answers[index]):
            request = Request(
                prompts[index], max_new_tokens, temperature, top_k, top_p, repetition_penalty, stops,
                (seed, index, sample), until=until,
            )  # fmt: skip
            under_way[engine.add(request)] = answer
    ended = 0
    while drawn := engine.step():
        before = ended
        for handle, token, logprob, finished, _ in drawn:
            answer = under_way[handle]
            answer.tokens.append(token)
            answer.logprobs.append(logprob)
            answer.finished = finished == "stop"
            ended += bool(finished)
        if told is not None and ended > before:
            told(ended)
    return answers


def stop_at_text(decode: Callable[[Sequence[int]], str], strings: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    """An `until` that ends an answer once its text holds one of `strings`.

    Only the last tokens are decoded: every token has at least one byte, so no string can reach further back. The
    answer's text still holds the string; cut it there with `cut_at_text`.
    """
    if not all(strings):
        raise BadInput("stop: an empty string would end every answer")
    reach = max((len(string.encode()) for string in strings), default=0) + 3  # a character may begin before the window

    def ended(tokens: Sequence[int]) -> bool:
        tail = decode(tokens[-reach:])
        return any(string in tail for string in strings)

    return ended


def cut_at_text(text: str, strings: Sequence[str]) -> str:
    """`text` up to the first of `strings` in it."""
    places = [place for place in (text.find(string) for string in strings) if place >= 0]
    return text[: min(places)] if places else text
