"""The sampler beside transformers' generate, and a step of GRPO beside TRL's: `python -m benchmarks.rollout`.

sample  32 ragged prompts (8 to 56 tokens), 64 new tokens each, temperature 1, no stop token: `generate` against
        transformers' generate on the exported weights, each at every batch size of BATCHES; the best of each is
        compared. Two models: the project's default, and one of about 30M parameters. First both answer greedily: the
        tokens must be the same.
stops   the same 32 prompts with a stop token that ends answers after 16 tokens on average, all in one batch: rows that
        have ended leave ours, and wait in transformers'
grpo    one step of GRPO on 64 answers (8 prompts, 8 each, 24 tokens, KL from a reference in the loss, AdamW), the
        default model: `Online.objective`, backward and step, against a step of trl's GRPOTrainer

Ours and the peer take turns. Figures are medians by the clock and by CPU seconds (which count on a machine that is
shared), with the commit, versions, device and load, in benchmarks/results/rollout.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.measuring import save, where
from llm_core.model import huggingface
from llm_core.model.config import ModelConfig
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer

PARTS = ("sample", "stops", "grpo")
BATCHES = (8, 16, 32)
PROMPTS, NEW_TOKENS = 32, 64
MODELS = {
    "default": {"vocab_size": 2048},
    "30m": {"vocab_size": 8192, "layers": 8, "width": 512, "heads": 8, "context": 256},
}


def make_model(name: str) -> Transformer:
    """A qwen3 of that size; weights are random, and large enough that answers differ."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset("qwen3", **MODELS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def exported(model: Transformer) -> Any:
    """The same model in transformers, as `from_pretrained` would open it."""
    told = {key: value for key, value in huggingface.to_config(model.config, 0).items() if key != "architectures"}
    peer = AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**told))
    peer.load_state_dict(huggingface.to_state(model.config, model.state_dict()))
    return peer.eval()


def make_prompts(vocabulary: int) -> list[list[int]]:
    """Ragged prompts of random tokens."""
    draw = random.Random(1)
    return [[draw.randrange(1, vocabulary) for _ in range(draw.randint(8, 56))] for _ in range(PROMPTS)]


def peer_answers(peer: Any, prompts: Sequence[list[int]], batch: int, **options: Any) -> list[list[int]]:
    """transformers' own way: padded on the left, prompts of like length together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        picked = order[start : start + batch]
        longest = max(len(prompts[i]) for i in picked)
        ids = torch.tensor([[0] * (longest - len(prompts[i])) + prompts[i] for i in picked])
        mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in picked])
        common = {"max_new_tokens": NEW_TOKENS, "pad_token_id": 0, "eos_token_id": None}
        with torch.inference_mode():
            out = peer.generate(input_ids=ids, attention_mask=mask, **(common | options))[:, longest:]
        for i, tokens in zip(picked, out.tolist(), strict=True):
            answers[i] = tokens
    return answers


def take_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, Any]]:
    """Median seconds of each, by the clock and of CPU, after one call that does not count."""
    clock: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            call()
            clock[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - began_cpu)
    return {name: _medians(clock[name], cpu[name]) for name in calls}


def _medians(clock: list[float], cpu: list[float]) -> dict[str, Any]:
    return {
        "median_s": round(statistics.median(clock), 4),
        "fastest_s": round(min(clock), 4),
        "median_cpu_s": round(statistics.median(cpu), 4),
        "all_s": [round(value, 4) for value in clock],
    }


def _ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    return {name: round(peer[name] / ours[name], 2) for name in ("median_s", "fastest_s", "median_cpu_s")}


def sample(name: str, rounds: int, batches: Sequence[int]) -> dict[str, Any]:
    """Both at every batch size; `peer_over_ours` compares the best of each."""
    model = make_model(name)
    peer, prompts = exported(model), make_prompts(model.config.vocab_size)
    ours = [rows[0].tokens for rows in generate(model, prompts, max_new_tokens=NEW_TOKENS, temperature=0)]
    theirs = peer_answers(peer, prompts, PROMPTS, do_sample=False)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    calls: dict[str, Callable[[], object]] = {}
    drawn = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    for batch in batches:
        calls[f"ours {batch}"] = lambda batch=batch: generate(
            model, prompts, max_new_tokens=NEW_TOKENS, batch_size=batch
        )
        calls[f"peer {batch}"] = lambda batch=batch: peer_answers(peer, prompts, batch, **drawn)
    found = take_turns(calls, rounds)
    best = {
        side: min((key for key in found if key.startswith(side)), key=lambda key: found[key]["median_cpu_s"])
        for side in ("ours", "peer")
    }
    tokens = PROMPTS * NEW_TOKENS
    return {
        "parameters": model.config.parameters(),
        "same_greedy_answers": f"{same} of {PROMPTS}",
        "best": best,
        "ours_tokens_per_s": round(tokens / found[best["ours"]]["median_s"]),
        "peer_tokens_per_s": round(tokens / found[best["peer"]]["median_s"]),
        "peer_over_ours": _ratios(found[best["ours"]], found[best["peer"]]),
        "calls": found,
    }


def stops(rounds: int) -> dict[str, Any]:
    """Answers that end at unequal times. The stop tokens are a sixteenth of the vocabulary."""
    model = make_model("default")
    peer, prompts = exported(model), make_prompts(model.config.vocab_size)
    ends = list(range(0, model.config.vocab_size, 16))
    found = take_turns(
        {
            "ours": lambda: generate(model, prompts, max_new_tokens=NEW_TOKENS, stop_ids=ends, batch_size=PROMPTS),
            "peer": lambda: peer_answers(peer, prompts, PROMPTS, do_sample=True, top_k=0, top_p=1.0, eos_token_id=ends),
        },
        rounds,
    )
    return {"peer_over_ours": _ratios(found["ours"], found["peer"]), "calls": found}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--models", default=",".join(MODELS), help="models of `sample`, separated by commas")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")}
    for part in given.only.split(","):
        if part == "sample":
            batches = [int(batch) for batch in given.batches.split(",")]
            for name in given.models.split(","):
                _keep(f"sample_{name}", sample(name, given.rounds, batches), given.threads, versions)
        elif part == "stops":
            _keep("stops", stops(given.rounds), given.threads, versions)
        else:
            from benchmarks.rollout_grpo import step_beside_trl

            with tempfile.TemporaryDirectory() as folder:
                _keep(
                    "grpo", step_beside_trl(make_model("default"), Path(folder), given.rounds), given.threads, versions
                )


def _keep(part: str, found: dict[str, Any], threads: int, versions: dict[str, str]) -> None:
    print(part, {key: value for key, value in found.items() if key != "calls"}, flush=True)
    save("rollout", {part: found | {"threads": threads, "peers": versions, "where": where()}})


if __name__ == "__main__":
    main()
