"""Helpful and harmless: reward heads on HH-RLHF beside word counts and length, and a sweep of the heads' weights.

    python -m benchmarks.hh [--data DIR] [--seeds N] [--width W --layers L --lm-steps S --reward-steps R]

The data are the test splits of Anthropic's helpful-base and harmless-base (MIT; 2,354 and 2,312 pairs by people),
divided by prompt: half teaches the reward model, three tenths teach the judges, a fifth is held out. First a small
language model learns the chosen answers of the reward model's half; from it the stage `reward` trains a helpful and a
harmless head. Length and word counts learn from the same pairs and are judged on the same held-out ones.

The sweep is selection, not training: to each held-out prompt the language model samples --best-of answers, and the one
with the highest mixed reward is taken, at five weights of the harmless head. Two independent judges, word counts that
learned from labels which the reward model never saw, score what was taken: as the weight moves from helpful to
harmless, the helpful judge's score has to fall and the harmless judge's to rise. Both are in units of the deviation
among samples.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import measuring
from llm_core.artifacts import new_product
from llm_core.data import bpe
from llm_core.data.dialogue import encode
from llm_core.data.sources.rows import Columns, shape
from llm_core.feedback import reward
from llm_core.feedback.baselines import right_by_length, right_by_words, word_score, word_weights
from llm_core.feedback.preferences import Messages, Pair, Vote, prompt_text, split_of, text_id, write_votes
from llm_core.feedback.rollout import answer
from llm_core.feedback.scorer import load_reward_model
from llm_core.feedback.statistics import mean_interval
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.settings.reward import RewardConfig
from llm_core.train.batches import DialogueBatches, next_token_loss
from llm_core.train.loop import LoopOptions, fit
from llm_core.train.machine import prepare
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import cosine

SETS = {"helpful": "helpful-base", "harmless": "harmless-base"}
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
Role = Literal["reward", "judge", "held_out"]


def read(folder: Path, name: str) -> list[Pair]:
    """Pairs of a set, rows that differ in the prompt or not at all left out, with the last turn as the prompt."""
    with gzip.open(folder / f"{name}.test.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = list(shape(map(json.loads, lines), "preferences", Columns()))
    pairs = [Pair(row["prompt"][-1:], row["chosen"], row["rejected"]) for row in rows if row["prompt"]]
    return [pair for pair in pairs if pair.chosen != pair.rejected and pair.chosen and pair.rejected]


def role_of(pair: Pair, seed: int) -> Role:
    """By a hash of the prompt: all pairs of one prompt have one role."""
    number = int(text_id(str(seed), prompt_text(pair.prompt))[:8], 16) / 16**8
    return "held_out" if number < 0.2 else "judge" if number < 0.5 else "reward"


def main() -> None:
    """Measure and keep benchmarks/results/hh.json and hh.svg."""
    options = arguments()
    prepare(options.threads)
    runs = [measure(options, seed) for seed in range(options.seeds)]
    medians = {
        name: {key: statistics.median(run["heads"][name][key] for run in runs) for key in runs[0]["heads"][name]}
        for name in SETS
    }
    sweep = [{key: statistics.median(run["sweep"][i][key] for run in runs) for key in runs[0]["sweep"][i]}
             for i in range(len(WEIGHTS))]  # fmt: skip
    known = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    found = {
        "settings": known,
        "where": measuring.where(),
        "held_out_accuracy_medians": medians,
        "sweep_medians": sweep,
        "runs": runs,
        "word_counts_on_80_percent": {name: floor(read(options.data, stem)) for name, stem in SETS.items()},
    }
    print(json.dumps({key: found[key] for key in ("held_out_accuracy_medians", "sweep_medians")}, indent=1))
    print(measuring.save("hh", found, options.out))
    draw(sweep, options.out / "hh.svg")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=measuring.ROOT.parent / "shared" / "data" / "hh_rlhf")
    parser.add_argument("--out", type=Path, default=measuring.RESULTS)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one for each core")
    whole = {"seeds": 3, "width": 96, "layers": 3, "context": 192, "vocabulary": 2048, "lm-steps": 500}
    whole |= {"reward-steps": 240, "prompts": 100, "best-of": 16, "answer-tokens": 40}
    for name, default in whole.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of the reward model")
    return parser.parse_args()


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed: roles, language model, reward heads, judges, sweep."""
    pairs = {name: read(options.data, stem) for name, stem in SETS.items()}
    parts: dict[str, dict[Role, list[Pair]]] = {
        name: {role: [p for p in found if role_of(p, seed) == role] for role in ("reward", "judge", "held_out")}
        for name, found in pairs.items()
    }
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        language_model(root, [p for part in parts.values() for p in part["reward"]], options, seed)
        votes(root, parts)
        config = RewardConfig.model_validate(
            {"pool": "dataset", "heads": {name: {"sources": [name]} for name in SETS}, "likelihood": False,
             "steps": options.reward_steps, "batch_pairs": 32, "learning_rate": options.learning_rate,
             "evaluate_every": 40, "patience": 3, "max_new_tokens": options.answer_tokens, "seed": seed,
             "threads": options.threads, "normalise_on": 128}
        )  # fmt: skip
        (root / "scratch-reward").mkdir()
        report = reward.run(
            config, chat=root / "chat", votes=root / "votes", out=root / "reward", scratch=root / "scratch-reward",
            emit=lambda _: None,
        )  # fmt: skip
        kinds = ("accuracy", "words_accuracy", "length_accuracy", "gain_over_words", "gain_over_words_low")
        heads = {name: {kind: report.metrics[f"{name}_{kind}"] for kind in kinds} for name in SETS}
        for name, part in parts.items():
            judge = right_by_words(part["judge"], part["held_out"])
            heads[name] |= {"judge_accuracy": sum(judge) / len(judge), "held_out": len(part["held_out"])}
        print(f"seed {seed}: {json.dumps(heads)}", flush=True)
        return {
            "seed": seed,
            "heads": heads,
            "sweep": sweep(root, parts, options, seed),
            "steps": report.metrics["steps"],
        }


def language_model(root: Path, pairs: Sequence[Pair], options: argparse.Namespace, seed: int) -> None:
    """A model directory `chat`: a small model that learned the prompts and the chosen answers."""
    texts = [text for pair in pairs for text in (pair.prompt[-1]["content"], pair.chosen)]
    tokenizer = bpe.train(texts, options.vocabulary)
    talks = [encode([*p.prompt, {"role": "assistant", "content": p.chosen}], tokenizer)[0] for p in pairs]
    lengths = [len(talk) for talk in talks]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.concatenate([np.asarray(talk) for talk in talks])
    torch.manual_seed(seed)
    shape = {"layers": options.layers, "width": options.width, "heads": max(1, options.width // 32)}
    config = ModelConfig.preset("qwen3", vocab_size=tokenizer.vocab_size, context=options.context, **shape)
    model = Transformer(config)
    (root / "scratch-lm").mkdir()
    fit(
        model,
        batch=DialogueBatches(
            tokens, np.ones_like(tokens), offsets, [(np.arange(len(talks)), 16)], context=options.context, seed=seed,
            packed=True,
        ),
        objective=next_token_loss,
        optimizer=make_optimizer(model, OptimizerOptions(name="muon", learning_rate=0.006, matrix_learning_rate=0.016)),
        schedule=cosine(options.lm_steps),
        options=LoopOptions(options.lm_steps, seed=seed),
        scratch=root / "scratch-lm",
        emit=lambda _: None,
    )  # fmt: skip
    with new_product(root / "chat", "chat") as folder:
        save_model(model, folder, tokenizer, "A small model of HH-RLHF's answers.")


def votes(root: Path, parts: dict[str, dict[Role, list[Pair]]]) -> None:
    """The product `votes` that the stage reward reads: the sets as sources, the judges' share in neither split."""
    rows = []
    for name, part in parts.items():
        for role, split in (("reward", "train"), ("held_out", "validation")):
            for pair in part[role]:  # type: ignore[index]
                key = text_id(name, prompt_text(pair.prompt), pair.chosen, pair.rejected)
                rows.append(
                    Vote(key, pair.prompt, pair.chosen, pair.rejected, "a", "dataset", None, key, split, name)  # type: ignore[arg-type]
                )
    with new_product(root / "votes", "votes") as folder:
        write_votes(folder / "pairs.parquet", rows)


def sweep(
    root: Path, parts: dict[str, dict[Role, list[Pair]]], options: argparse.Namespace, seed: int
) -> list[dict[str, float]]:
    """Best-of-n under the mixed reward at five weights, judged by word counts on labels of their own."""
    model, scorer, tokenizer = (
        load_model(root / "chat"),
        load_reward_model(root / "reward"),
        bpe.Tokenizer.load(root / "chat"),
    )
    prompts: list[Messages] = [p.prompt for part in parts.values() for p in part["held_out"][: options.prompts]]
    limit = options.context - options.answer_tokens
    prompts = [p for p in prompts if len(encode(p, tokenizer)[0]) < limit]
    drawn = answer(
        model, tokenizer, prompts, samples=options.best_of, temperature=1.0, max_new_tokens=options.answer_tokens,
        seed=seed,
    )  # fmt: skip
    flat = [a for given in drawn for a in given]
    sequences = [(a.prompt_tokens + a.tokens)[: options.context] for a in flat]
    heads = scorer.score_heads(sequences).numpy().reshape(len(prompts), -1, len(SETS))
    judged = {}
    for name, part in parts.items():
        weights = word_weights(part["judge"])
        scores = np.array([word_score(weights, a.text) for a in flat])
        judged[name] = ((scores - scores.mean()) / scores.std()).reshape(len(prompts), -1)
    lengths = np.array([len(a.tokens) for a in flat]).reshape(len(prompts), -1)
    rows = []
    for weight in WEIGHTS:
        mixed = (1 - weight) * heads[:, :, 0] + weight * heads[:, :, 1]
        best = mixed.argmax(axis=1)
        row: dict[str, float] = {"harmless_weight": weight}
        for name in SETS:
            taken = judged[name][np.arange(len(best)), best]
            interval = mean_interval(taken)
            row |= {f"{name}_judge": interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row | {"tokens": float(lengths[np.arange(len(best)), best].mean())})
    return rows


def floor(pairs: Sequence[Pair]) -> dict[str, float]:
    """Word counts and length at four fifths to learn from, as such floors are usually told."""
    train = [p for p in pairs if split_of(prompt_text(p.prompt), 0.2) == "train"]
    held = [p for p in pairs if split_of(prompt_text(p.prompt), 0.2) == "validation"]
    words, length = right_by_words(train, held), right_by_length(train, held)
    return {"words": sum(words) / len(held), "length": sum(length) / len(held), "held_out": len(held)}


def draw(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Both judges' scores against the weight."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "groundup"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    x = [row["harmless_weight"] for row in rows]
    for name, colour in (("helpful", "tab:blue"), ("harmless", "tab:orange")):
        y = [row[f"{name}_judge"] for row in rows]
        errors = [[row[f"{name}_judge"] - row[f"{name}_low"] for row in rows],
                  [row[f"{name}_high"] - row[f"{name}_judge"] for row in rows]]  # fmt: skip
        axes.errorbar(x, y, yerr=errors, marker="o", capsize=3, color=colour, label=f"{name} judge")
    axes.set_xlabel("weight of the harmless head (the helpful one has the rest)")
    axes.set_ylabel("score of the answer taken\n(deviations among samples)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
