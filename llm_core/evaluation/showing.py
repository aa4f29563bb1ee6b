"""Text samples for people: the same prompts for every model, before and after tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt, stop_ids
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer

OPENING_TOKENS = 16


def continue_pages(
    models: Mapping[str, Transformer], tokenizer: Tokenizer, pages: Sequence[Sequence[int]], tokens: int, seed: int
) -> list[dict[str, str]]:
    """Every model goes on from the first tokens of held-out pages, sampled at temperature 0.8."""
    openings = [[tokenizer.end_id, *page[:OPENING_TOKENS]] for page in pages]
    return [
        {"model": name, "prompt": tokenizer.decode(opening[1:]), "text": text}
        for name, model in models.items()
        for opening, text in zip(openings, _write(model, tokenizer, openings, tokens, 0.8, seed), strict=True)
    ]


def answer_questions(
    models: Mapping[str, Transformer], tokenizer: Tokenizer, asked: Sequence[str], tokens: int
) -> list[dict[str, str]]:
    """Every model answers the questions greedily; base reads them as a line of text, since it knows no dialogues."""
    samples = []
    for name, model in models.items():
        if name == "base":
            prompts = [[tokenizer.end_id, *tokenizer.encode(f"{question}\n")] for question in asked]
        else:
            prompts = [encode_prompt([{"role": "user", "content": question}], tokenizer) for question in asked]
        texts = _write(model, tokenizer, prompts, tokens, 0.0, 0)
        samples += [{"model": name, "prompt": q, "text": text} for q, text in zip(asked, texts, strict=True)]
    return samples


def _write(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[list[int]], tokens: int, temperature: float, seed: int
) -> list[str]:
    special = frozenset(tokenizer.specials.values())
    room = model.config.context - 1
    drawn = generate(
        model,
        [prompt[-room:] for prompt in prompts],
        max_new_tokens=tokens,
        temperature=temperature,
        top_p=0.95,
        stop_ids=stop_ids(tokenizer) | {tokenizer.end_id},
        seed=seed,
    )
    return [tokenizer.decode([t for t in given[0].tokens if t not in special]) for given in drawn]
