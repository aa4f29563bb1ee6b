"""One step of GRPO beside a step of trl's GRPOTrainer, on the same weights, prompts, sizes and reward."""

from __future__ import annotations

import copy
import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from tokenizers import Tokenizer as Words
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from llm_core.data.bpe import Tokenizer
from llm_core.feedback.actor import OnlineOptions
from llm_core.feedback.online import Online
from llm_core.feedback.worth import Prompt, Rewards, Sample, Worth
from llm_core.model.transformer import Transformer

PROMPTS, SAMPLES, NEW_TOKENS = 8, 8, 24
LEARNING_RATE, KL_WEIGHT = 1e-5, 0.05


def worth_of(text: str) -> float:
    """A reward that differs among answers: the share of words with an even number."""
    words = text.split()
    return sum(word[-1] in "02468" for word in words) / max(1, len(words))


class _Vocabulary:
    """What `Online` asks of a tokenizer: token t is the word "wt", 0 ends an answer."""

    def __init__(self) -> None:
        self.specials = {"<|end|>": 0}

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)


class _Reward:
    names = ("checked",)

    def __call__(self, samples: Sequence[Sample]) -> Worth:
        total = [worth_of(sample.text) for sample in samples]
        return Worth(total, {"checked": total})


def _our_step(model: Transformer, prompts: list[list[int]]) -> Any:
    """A function that takes one step and returns its figures."""
    options = OnlineOptions(
        prompts=PROMPTS, samples=SAMPLES, max_new_tokens=NEW_TOKENS, temperature=1.0, kl_weight=KL_WEIGHT
    )
    asked = [Prompt(prompt, [], None) for prompt in prompts]
    online = Online(
        options, asked, cast(Rewards, _Reward()), cast(Tokenizer, _Vocabulary()), copy.deepcopy(model).eval()
    )
    actor = online.actor(model, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    number = 0

    def step() -> dict[str, float]:
        nonlocal number
        loss = online.objective(actor, online.place(number))
        number += 1
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return dict(loss.figures)

    return step


class _TakeTurns(TrainerCallback):  # type: ignore[misc]
    """Times the trainer's steps, and takes one of ours after each."""

    def __init__(self, ours: Any) -> None:
        self.ours = ours
        self.times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
        self.began = (0.0, 0.0)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = (time.perf_counter(), time.process_time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._note("peer")
        self.began = (time.perf_counter(), time.process_time())
        self.ours()
        self._note("ours")

    def _note(self, side: str) -> None:
        self.times[side].append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))


def _trainer(peer: Any, prompts: list[list[int]], folder: Path, steps: int, callback: TrainerCallback) -> Any:
    vocabulary = {f"w{token}": token for token in range(peer.config.vocab_size)}
    words = Words(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0", unk_token="w0")
    config = GRPOConfig(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES,
        max_completion_length=NEW_TOKENS, beta=0.0, temperature=1.0, learning_rate=LEARNING_RATE, max_steps=steps,
        loss_type="grpo", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=False,
        gradient_checkpointing=False, dataloader_num_workers=0, dataloader_pin_memory=False,
    )  # fmt: skip
    known = {field.name for field in dataclasses.fields(config)}
    assert {"loss_type", "num_generations"} <= known
    rows = Dataset.from_dict({"prompt": [" ".join(f"w{token}" for token in prompt) for prompt in prompts]})

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [worth_of(text) for text in completions]

    trainer = GRPOTrainer(
        model=peer, reward_funcs=reward, args=config, train_dataset=rows, processing_class=tokenizer,
        callbacks=[callback],
    )  # fmt: skip
    # with beta above 0 from the start, the trainer would look for the reference by name
    trainer.beta, trainer.ref_model = KL_WEIGHT, copy.deepcopy(peer).eval()
    return trainer


def step_beside_trl(model: Transformer, folder: Path, rounds: int) -> dict[str, Any]:
    """Median seconds of a step; the first two do not count."""
    from benchmarks.rollout import exported

    draw = random.Random(2)
    prompts = [[draw.randrange(1, model.config.vocab_size) for _ in range(draw.randint(8, 56))] for _ in range(PROMPTS)]
    peer = exported(model)
    callback = _TakeTurns(_our_step(model, prompts))
    _trainer(peer, prompts, folder, rounds + 2, callback).train()
    calls = {
        side: {
            "median_s": round(statistics.median(clock for clock, _ in times[2:]), 4),
            "fastest_s": round(min(clock for clock, _ in times[2:]), 4),
            "median_cpu_s": round(statistics.median(cpu for _, cpu in times[2:]), 4),
        }
        for side, times in callback.times.items()
    }
    ratios = {name: round(calls["peer"][name] / calls["ours"][name], 2) for name in calls["ours"]}
    return {"answers": PROMPTS * SAMPLES, "peer_over_ours": ratios, "calls": calls}
