"""Feedback on taste: does a learned reward make continuations of film reviews kinder, as an independent judge sees it?

    python -m benchmarks.sentiment [--seeds 0 1 2] [--methods dpo ppo grpo] [--share 1.0] [--results FOLDER]

10,662 sentences of film reviews with human labels (sentence_polarity), in roles with disjoint labels: the reward model
learns from 4,800 (Bradley-Terry, positive over negative), the judge, a naive Bayes classifier, from 4,862 others, and
1,000 are held out. The language model (0.9 million parameters) sees the text of all but these, no labels. Prompts are
the first words of sentences, answers their continuations. DPO learns from pairs that the reward model judged, best
against worst of 8 samples; PPO and GRPO from its score. Each runs as the stage align. Measured on 400 held-out prompts:
the judge's P(positive), KL in nats per answer, perplexity on held-out sentences beside the untuned model's, share that
ended, length. Asked for: P(positive) from about 0.48 to 0.85 or more at KL <= 15 and perplexity <= 1.5x.
One thread; about twenty minutes a seed on a quiet core. `--share` shortens every training, to try the script out.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the stages

import numpy as np
import torch

from benchmarks.measuring import RESULTS, ROOT, save, where
from llm_core.artifacts import new_product
from llm_core.contract import Event
from llm_core.data import bpe
from llm_core.data.dialogue import encode
from llm_core.feedback import align
from llm_core.feedback.objectives import reward_loss
from llm_core.feedback.preferences import EncodedPair, PairBatch, Vote, collate, write_votes
from llm_core.feedback.rollout import answer, divergence
from llm_core.feedback.scorer import RewardModel, save_reward_model
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.settings.align import AlignConfig
from llm_core.train import batches
from llm_core.train.loop import LoopOptions, Loss, fit
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import cosine

DATA = ROOT.parent / "shared" / "data" / "sentence_polarity" / "sentence_polarity.jsonl.gz"
OPENING, LONGEST, PROMPTS, JUDGED, CONTEXT = 4, 24, 1200, 400, 64
DROPOUT = 0.3
"""Of the reward model in training: it has 4,200 sentences to learn from, and without it knows them by heart at once."""
ONLINE = {
    "prompts": 16, "samples": 8, "learning_rate": 3e-4, "kl_weight": 0.15, "kl_horizon": 1500, "evaluate_every": 50,
    "missing_end_penalty": 0.5,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo", "beta": 0.05, "steps": 300, "batch_pairs": 16, "learning_rate": 2e-4, "sft_weight": 0.2,
            "evaluate_every": 150},
    "ppo": {"method": "ppo", "online": ONLINE | {"rollouts": 300, "kl_target": 11.0}},
    "grpo": {"method": "grpo", "online": ONLINE | {"rollouts": 350, "kl_target": 14.2}},
}  # fmt: skip
"""PPO is held nearer to the untuned model: at the same KL its held-out sentences become less likely than GRPO's."""


def dialogue(text: str) -> list[dict[str, str]]:
    """The first words as what is asked, the rest as the answer."""
    words = text.split(" ")
    asked, rest = " ".join(words[:OPENING]), " ".join(words[OPENING:])
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": rest}]


def roles(path: Path, seed: int) -> dict[str, list[tuple[str, int]]]:
    """Sentences with their labels, in disjoint roles."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [(row["text"], row["label"]) for row in map(json.loads, lines)]
    long = [row for row in rows if len(row[0].split(" ")) > OPENING + 3]
    mixed = [long[i] for i in np.random.default_rng(seed).permutation(len(long))]
    return {"held_out": mixed[:1000], "reward": mixed[1000:5800], "judge": mixed[5800:]}


def naive_bayes(rows: Sequence[tuple[str, int]]) -> Callable[[str], float]:
    """The judge: P(positive) of a text, from the words of labelled sentences."""
    counts = [Counter(word for text, label in rows if label == side for word in text.split()) for side in (0, 1)]
    totals, known = [sum(c.values()) for c in counts], len({*counts[0], *counts[1]})

    def judge(text: str) -> float:
        odds = sum(
            math.log((counts[1][w] + 1) / (totals[1] + known)) - math.log((counts[0][w] + 1) / (totals[0] + known))
            for w in text.split()
        )
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))

    return judge


def pieces(rows: Sequence[tuple[str, int]], tokenizer: bpe.Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids of the sentences as dialogues, and a mask on all but the first."""
    ids = [np.array(encode(dialogue(text), tokenizer)[0][:CONTEXT]) for text, _ in rows]
    return [(piece, np.r_[0, np.ones(len(piece) - 1, dtype=int)]) for piece in ids]


def trained(
    seed: int, data: Sequence[tuple[np.ndarray, np.ndarray]], vocabulary: int, steps: int, scratch: Path
) -> Transformer:
    """The language model."""
    torch.manual_seed(seed)
    model = Transformer(
        ModelConfig.preset("qwen3", vocab_size=vocabulary, layers=3, heads=4, width=128, context=CONTEXT + LONGEST)
    )

    def batch(step: int) -> batches.TokenBatch:
        chosen = np.random.default_rng([seed, step]).integers(len(data), size=64)
        return batches.collate([data[i][0] for i in chosen], [data[i][1] for i in chosen], CONTEXT)

    optimizer = OptimizerOptions(name="muon", learning_rate=3e-3, embedding_learning_rate=0.03, weight_decay=0.0)
    fit(
        model, batch=batch, objective=batches.next_token_loss, optimizer=make_optimizer(model, optimizer),
        schedule=cosine(steps), options=LoopOptions(steps, seed=seed), scratch=scratch, emit=tell,
    )  # fmt: skip
    return model


def rewarding(
    seed: int, model: Transformer, tokenizer: bpe.Tokenizer, rows: Sequence[tuple[str, int]], steps: int, scratch: Path
) -> tuple[RewardModel, float]:
    """A reward model that prefers positive sentences to negative ones, and its accuracy on held-out pairs."""
    sides = [
        [encode(dialogue(text), tokenizer)[0][:CONTEXT] for text, label in rows if label == side] for side in (0, 1)
    ]
    held = [EncodedPair(p, n, 1, 1) for p, n in zip(sides[1][:300], sides[0][:300], strict=False)]
    good, bad = sides[1][300:], sides[0][300:]
    torch.manual_seed(seed)
    scorer = RewardModel(load_copy(model, DROPOUT), seed)

    def batch(step: int) -> PairBatch:
        draw = np.random.default_rng([seed, step])
        chosen = [(good[draw.integers(len(good))], bad[draw.integers(len(bad))]) for _ in range(32)]
        return collate([EncodedPair(p, n, 1, 1) for p, n in chosen], range(32))

    def objective(trained: RewardModel, pairs: PairBatch) -> Loss:
        scores = trained(pairs.tokens_BT, pairs.last_B).view(2, -1)
        count = scores.shape[1]
        return Loss(reward_loss(scores[0], scores[1], centre=0.01) * count, count, {}, pairs.tokens_BT.numel())

    def look(trained: RewardModel) -> dict[str, float]:
        pairs = collate(held, range(len(held)))
        scores = trained(pairs.tokens_BT, pairs.last_B).view(2, -1)
        right = float((scores[0] > scores[1]).float().mean())
        return {"validation/loss": float(reward_loss(scores[0], scores[1])), "validation/accuracy": right}

    fitted = fit(
        scorer, batch=batch, objective=objective,
        optimizer=make_optimizer(scorer, OptimizerOptions(learning_rate=3e-3, weight_decay=0.1)),
        schedule=cosine(steps, 0.1), scratch=scratch, emit=tell, evaluate=look,
        options=LoopOptions(steps, seed=seed, evaluate_every=25, keep_best_by="validation/loss", patience=6),
    )  # fmt: skip
    scorer.backbone = load_copy(scorer.backbone, 0.0)
    return scorer, fitted.best["validation/accuracy"]


def preferences(
    seed: int, model: Transformer, tokenizer: bpe.Tokenizer, scorer: RewardModel, rows: Sequence[tuple[str, int]]
) -> list[Vote]:
    """Best against worst of 8 samples by the reward model, which is normalised on these very samples."""
    prompts = [dialogue(text)[:1] for text, _ in rows]
    drawn = answer(model, tokenizer, prompts, samples=8, temperature=1.0, max_new_tokens=LONGEST, seed=seed)
    flat = [a.prompt_tokens + a.tokens for given in drawn for a in given]
    scorer.normalise(flat)
    scores = np.array(scorer.score(flat)).reshape(len(drawn), 8)
    votes = []
    for i, (prompt, given) in enumerate(zip(prompts, drawn, strict=True)):
        best, worst = given[int(scores[i].argmax())].text, given[int(scores[i].argmin())].text
        split = "validation" if i % 10 == 0 else "train"
        votes.append(Vote(f"v{i:05d}", prompt, best, worst, "a", "simulated", None, prompt[0]["content"], split))
    return votes


def figures(
    model: Transformer, chat: Transformer, tokenizer: bpe.Tokenizer, judge: Callable[[str], float],
    held_out: Sequence[tuple[str, int]],
) -> dict[str, Any]:  # fmt: skip
    """What is measured of a model: samples at temperature 1, one to each prompt."""
    prompts = [dialogue(text)[:1] for text, _ in held_out[:JUDGED]]
    drawn = [
        given[0]
        for given in answer(model, tokenizer, prompts, samples=1, temperature=1.0, max_new_tokens=LONGEST, seed=7)
    ]
    texts = [f"{prompt[0]['content']} {a.text}" for prompt, a in zip(prompts, drawn, strict=True)]
    words = [a.text.split() for a in drawn]
    bigrams = [pair for text in words for pair in itertools.pairwise(text)]
    nats, count = 0.0, 0.0
    data = pieces(held_out, tokenizer)
    with torch.no_grad():
        for start in range(0, len(data), 100):
            part = data[start : start + 100]
            loss = batches.next_token_loss(model, batches.collate([t for t, _ in part], [m for _, m in part], CONTEXT))
            nats, count = nats + float(loss.total), count + loss.count
    return {
        "p_positive": statistics.fmean(map(judge, texts)),
        "kl_nats": divergence(model, chat, drawn),
        "perplexity": math.exp(nats / count),
        "ended": statistics.fmean(a.finished for a in drawn),
        "answer_tokens": statistics.fmean(len(a.tokens) for a in drawn),
        "distinct_2": len(set(bigrams)) / max(1, len(bigrams)),
        "samples": texts[:8],
    }


def one(seed: int, methods: Sequence[str], share: float, path: Path) -> dict[str, Any]:
    """All of one seed."""
    torch.set_num_threads(1)
    rows = roles(path, seed)
    judge = naive_bayes(rows["judge"])
    judged = statistics.fmean((judge(text) > 0.5) == bool(label) for text, label in rows["held_out"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = [*rows["reward"], *rows["judge"]]
        tokenizer = bpe.train([sentence for sentence, _ in text], 2000)
        chat = trained(seed, pieces(text, tokenizer), tokenizer.vocab_size, round(700 * share), folder / "lm")
        scorer, accuracy = rewarding(seed, chat, tokenizer, rows["reward"], max(25, round(400 * share)), folder / "rm")
        votes = preferences(seed, chat, tokenizer, scorer, text[: max(200, round(PROMPTS * share))])
        with new_product(folder / "chat", "chat") as made:
            save_model(chat, made, tokenizer, "language model")
        with new_product(folder / "reward", "reward") as made:
            save_reward_model(scorer, made, tokenizer, "reward model")
        with new_product(folder / "votes", "votes") as made:
            write_votes(made / "pairs.parquet", votes)
        found: dict[str, Any] = {"seed": seed, "parameters": chat.config.parameters(), "reward_accuracy": accuracy,
                 "judge_accuracy": judged, "chat": figures(chat, chat, tokenizer, judge, rows["held_out"])}  # fmt: skip
        print({key: value for key, value in found["chat"].items() if key != "samples"}, flush=True)
        for method in methods:
            found[method] = tuned(folder, method, seed, share, chat, tokenizer, judge, rows["held_out"])
            found[method]["perplexity_ratio"] = found[method]["perplexity"] / found["chat"]["perplexity"]
            print(method, {key: value for key, value in found[method].items() if key != "samples"}, flush=True)
    return found


def tuned(
    folder: Path, method: str, seed: int, share: float, chat: Transformer, tokenizer: bpe.Tokenizer,
    judge: Callable[[str], float], held_out: Sequence[tuple[str, int]],
) -> dict[str, Any]:  # fmt: skip
    """The stage align by one method, and what came of it."""
    settings = json.loads(json.dumps(METHODS[method])) | {"seed": seed, "threads": 1, "max_new_tokens": LONGEST}
    if share < 1:
        settings["steps"] = max(2, round(settings.get("steps", 200) * share))
        if "online" in settings:
            settings["online"]["rollouts"] = max(2, round(settings["online"]["rollouts"] * share))
    out, scratch = folder / method, folder / f"scratch-{method}"
    scratch.mkdir()
    began = time.perf_counter()
    align.run(
        AlignConfig.model_validate(settings), chat=folder / "chat", reward=folder / "reward", votes=folder / "votes",
        out=out, scratch=scratch, emit=tell,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return figures(load_model(out), chat, tokenizer, judge, held_out) | {"align_seconds": round(seconds, 1)}


def load_copy(model: Transformer, dropout: float) -> Transformer:
    """The same weights again, in a model that drops so much in training."""
    copied = Transformer(replace(model.config, dropout=dropout))
    copied.load_state_dict(model.state_dict())
    return copied


def tell(event: Event) -> None:
    """The looks at held-out data on the way."""
    values = getattr(event, "values", {})
    looked = {name: round(value, 3) for name, value in values.items() if name.startswith("validation/")}
    if looked:
        print(getattr(event, "step", ""), looked, flush=True)


def main() -> None:
    """Measure seed by seed, saving after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--share", type=float, default=1.0, help="share of every training's steps, 0 to 1")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    about, runs = where(), []
    for seed in given.seeds:
        runs.append(one(seed, given.methods, given.share, given.data))
        summary = {
            method: {name: spread([run[method][name] for run in runs])
                     for name in ("p_positive", "kl_nats", "perplexity_ratio", "ended", "align_seconds")}
            for method in given.methods
        }  # fmt: skip
        summary["chat"] = {"p_positive": spread([run["chat"]["p_positive"] for run in runs])}
        part = {"where": about, "settings": METHODS, "share": given.share, "runs": runs, "summary": summary}
        save("sentiment", {"methods": part}, given.results)
    print(json.dumps(summary, indent=1))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    main()
