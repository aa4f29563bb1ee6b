"""The model behind lm-evaluation-harness's interface, and one of its tasks run (Gao et al., EleutherAI).

Notable:
- `lm_eval` is imported when a task runs: who asks for none of its tasks needs none of it (extra `harness`).
- Texts become tokens as in the harness's own Hugging Face adapter, so scores agree with it to rounding.
- Requests of all questions reach `continuations` at once, which shares what they begin with.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import stop_ids
from llm_core.evaluation.likelihood import continuations
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer
from llm_core.train.heldout import spread

MISSING = 'lm-evaluation-harness is not installed: pip install "groundup[harness]"'
MAX_NEW_TOKENS = 256  # as the harness's own adapter, where a task does not say


class Adapter:
    """The three calls that the harness makes of a model; a request's `args` are its texts."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model, self.tokens = model, tokenizer
        self.encode = lru_cache(maxsize=1 << 16)(tokenizer.encode)

    @property
    def tokenizer_name(self) -> str:
        """Under which the harness would cache requests."""
        return self.tokens.digest

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether greedy decoding would write it) of each request."""
        results = continuations(self.model, [self._pair(*request.args) for request in requests])
        return [(result.logprob, result.greedy) for result in results]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability in nats of each whole text: windows as long as the context, each token scored once."""
        asked, owners = [], []
        for number, request in enumerate(requests):
            windows = rolling_windows(self.encode(request.args[0]), self.tokens.end_id, self.model.config.context)
            asked += windows
            owners += [number] * len(windows)
        totals = [0.0] * len(requests)
        for owner, result in zip(owners, continuations(self.model, asked), strict=True):
            totals[owner] += result.logprob
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the model writes after each text up to one of the task's stopping texts, which is left out."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in groups.values():
            settings = requests[numbers[0]].args[1]
            written = self._write([requests[i].args[0] for i in numbers], settings)
            for number, text in zip(numbers, written, strict=True):
                answers[number] = text
        return answers

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:  # pragma: no cover
        """Not offered: role tokens are ids, never spelled in a text."""
        raise NotImplementedError("a dialogue is encoded by ids; run this task without a chat template")

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both; white space that ends the context belongs to the continuation, as words begin with a space."""
        if not context:
            return [self.tokens.end_id], self.encode(continuation)
        kept = context.rstrip()
        whole = self.tokens.encode(context + continuation)
        first = self.encode(kept)
        if not first:  # a context of white space alone
            return [self.tokens.end_id], whole
        return whole[: len(first)], whole[len(first) :]

    def _write(self, texts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else [stop for stop in until if stop]
        context = self.model.config.context
        most = min(int(settings.get("max_gen_toks", MAX_NEW_TOKENS)), context - 1)
        sampled = settings.get("do_sample", False) or settings.get("temperature", 0) > 0
        drawn = generate(
            self.model,
            [(self.encode(text) or [self.tokens.end_id])[-(context - most) :] for text in texts],
            max_new_tokens=most,
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(settings.get("top_p", 1.0)),
            top_k=int(settings.get("top_k", 0)) if sampled else 0,
            stop_ids=self._stops(tuple(until)),
        )
        special = frozenset(self.tokens.specials.values())
        return [_until(self.tokens.decode([t for t in d[0].tokens if t not in special]), until) for d in drawn]

    @lru_cache(maxsize=64)  # noqa: B019  (an adapter lives as long as its process's one task)
    def _stops(self, until: tuple[str, ...]) -> frozenset[int]:
        """Tokens after which nothing that counts can come: the end, and each one that holds a stopping text whole."""
        spelled = [stop.encode() for stop in until]
        holding = {rank for token, rank in self.tokens.ranks.items() if any(stop in token for stop in spelled)}
        return stop_ids(self.tokens) | holding


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text


def rolling_windows(tokens: Sequence[int], prefix: int, room: int) -> list[tuple[list[int], list[int]]]:
    """(context, tokens to score) that cover `tokens` once; the last window reaches back to be full too.

    As the harness cuts a text: the first window follows the token `prefix`, a later one the token before it.
    """
    whole = [prefix, *tokens]
    windows = []
    for start in range(0, len(tokens), room):
        stop = min(start + room, len(tokens))
        windows.append((whole[max(0, stop - room) : start + 1], whole[start + 1 : stop + 1]))
    return windows


@dataclass(frozen=True)
class Answered:
    """One document of a task: what was asked, what the model chose, and the task's own metrics for it."""

    id: str
    prompt: str
    answer: str
    metrics: dict[str, float]
    scored: bool = True
    """Whether given texts were scored; else the model wrote the answer."""


@dataclass(frozen=True)
class TaskResult:
    """Aggregated figures of a task by metric, and its documents."""

    figures: dict[str, float]
    documents: list[Answered]


def as_harness_model(model: Transformer, tokenizer: Tokenizer) -> Any:
    """An `lm_eval.api.model.LM`. Raises `BadInput` if the harness is not installed."""
    _lm_eval()
    from lm_eval.api.model import LM  # type: ignore[import-untyped,import-not-found]

    return type("GroundupLM", (Adapter, LM), {})(model, tokenizer)


def run_task(
    lm: Any, task: str | Mapping[str, Any], *, examples: int = 0, shots: int | None = None, seed: int = 0
) -> TaskResult:
    """Run one task of the harness: one of its own by name, or a configuration as its YAML files hold.

    `examples`: so many documents of each subtask, evenly spread (0: all). `shots`: worked examples in each prompt
    (None: the task's own number). Raises `BadInput` for a name that the harness does not know.
    """
    evaluator, manager = _lm_eval()
    known = manager(include_defaults=isinstance(task, str))
    if isinstance(task, str) and task not in known.all_tasks:
        raise BadInput(f"evaluate.tasks: lm-evaluation-harness knows no task {task!r}")
    loaded = known.load([task if isinstance(task, str) else dict(task)])
    for single in loaded["tasks"].values():
        own = single.get_config("num_fewshot")
        if own != 0:  # a task that says 0 is asked without examples, as the harness's command does
            single.set_config(key="num_fewshot", value=own or 0 if shots is None else shots)
        single.set_fewshot_seed(seed=seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # not simple_evaluate, which asks pip and git for seconds what is installed
    picked = {name: spread(len(one.eval_docs), examples) for name, one in loaded["tasks"].items()} if examples else None
    found = evaluator.evaluate(lm, loaded, samples=picked, log_samples=True, bootstrap_iters=0)
    figures: dict[str, float] = {}
    documents: list[Answered] = []
    alone = len(found["samples"]) == 1
    for name, samples in sorted(found["samples"].items()):
        results = found["results"][name]
        figures |= {_metric(key, "" if alone else name): v for key, v in results.items() if _is_figure(key, v)}
        documents += [_document("" if alone else f"{name}/", sample) for sample in samples]
    return TaskResult(figures, documents)


def _lm_eval() -> tuple[Any, Any]:
    """(module lm_eval.evaluator, class TaskManager), imported now, without progress bars."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        from lm_eval import evaluator  # type: ignore[import-untyped,import-not-found]
        from lm_eval.tasks import TaskManager  # type: ignore[import-untyped,import-not-found]
    except ModuleNotFoundError as missing:
        if missing.name != "lm_eval":
            raise
        raise BadInput(MISSING) from missing
    import datasets

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    return evaluator, TaskManager


def _is_figure(key: str, value: Any) -> bool:
    return "," in key and "stderr" not in key and isinstance(value, int | float)


def _metric(key: str, subtask: str) -> str:
    """`acc,none` is `acc`; with another filter its name stands behind."""
    metric, _, filtered = key.partition(",")
    metric = metric if filtered == "none" else f"{metric} {filtered}"
    return f"{subtask} {metric}".strip()


def _document(prefix: str, sample: Mapping[str, Any]) -> Answered:
    """A logged sample. The answer is what was written or scored; of several scored texts the likeliest."""
    arguments = [tuple(given) for given in _arguments(sample["arguments"])]
    responses = [response[0] if isinstance(response, list | tuple) else response for response in sample["resps"]]
    responses = [r[0] if isinstance(r, list | tuple) and r and isinstance(r[0], list | tuple) else r for r in responses]
    scored = all(isinstance(r, list | tuple) and len(r) == 2 for r in responses)
    if scored and len(arguments) > 1:
        best = max(range(len(responses)), key=lambda i: float(responses[i][0]))
        prompt, answer = arguments[best][0], arguments[best][1].strip()
    else:
        prompt, answer = str(arguments[0][0]), str(arguments[0][1] if scored else responses[0]).strip()
    metrics = {m: float(sample[m]) for m in sample["metrics"] if isinstance(sample[m], int | float)}
    return Answered(f"{prefix}{sample['doc_id']:06d}", prompt, answer, metrics, scored)


def _arguments(given: Any) -> list[Sequence[Any]]:
    """Logged arguments are a list, or a mapping of mappings in newer versions."""
    if isinstance(given, Mapping):
        return [list(part.values()) if isinstance(part, Mapping) else part for part in given.values()]
    return list(given)
