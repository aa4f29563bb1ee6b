"""Answers to dialogues: their tokens, text and seeds."""

from __future__ import annotations

import torch

from llm_core.data import bpe
from llm_core.data.dialogue import encode_prompt, stop_ids
from llm_core.feedback.rollout import answer, answer_logprob
from llm_core.model.config import ModelConfig
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer


def test_answers_follow_their_prompts_and_progress_is_told() -> None:
    torch.set_num_threads(1)
    tokenizer = bpe.train(["one plus two is three, four less one is three"] * 3, 300)
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset("tiny", vocab_size=tokenizer.vocab_size)).eval()
    prompts = [[{"role": "user", "content": "plus " * (1 + index % 3) + str(index)}] for index in range(150)]
    heard: list[int] = []
    told = heard.append
    given = answer(model, tokenizer, prompts, samples=2, temperature=1.0, max_new_tokens=4, seed=3, told=told)
    assert [row[0].prompt_tokens for row in given] == [encode_prompt(prompt, tokenizer) for prompt in prompts]
    assert heard[-1] == 150
    assert len(heard) == 2
    again = answer(model, tokenizer, prompts, samples=2, temperature=1.0, max_new_tokens=4, seed=3)
    assert again == given
    assert given[0][0].tokens != given[0][1].tokens
    drawn = generate(
        model,
        [row[0].prompt_tokens for row in given],
        max_new_tokens=4,
        samples=2,
        seed=3,
        stop_ids=stop_ids(tokenizer),
    )
    sums = [sum(completion.logprobs) for row in drawn for completion in row]
    whole = answer_logprob(model, [one for row in given for one in row])
    assert torch.allclose(torch.tensor(sums), torch.tensor(whole), atol=1e-3)
