"""Our adapter against lm-evaluation-harness's own for Hugging Face models, on the weights we export."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_core.contract import BadInput
from llm_core.data.bpe import END, Tokenizer, train
from llm_core.evaluation import harness
from llm_core.evaluation.benchmarks import local
from llm_core.evaluation.benchmarks.docstrings import Benchmark, Choice, Cloze, write_sets
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer

pytest.importorskip("lm_eval")
SETS = Path(local.__file__).with_name("sets")
TASKS = [name for name in local.local_names(SETS) if name.startswith("local_") and name != local.WIKITEXT]
CONTEXT, DOCUMENTS = 192, 20  # some passages of BoolQ are longer than the context


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import datasets

    old = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = old


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> Tokenizer:
    return train([(shared_data / "wikitext2" / "valid.txt").read_text()[:300_000]], 1024, specials=[END])


def pair(architecture: str, tokenizer: Tokenizer, folder: Path) -> tuple[Any, Any]:
    """(our adapter, the harness's on the exported weights): a model whose answers depend on what it reads."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = ModelConfig.preset(
        architecture, vocab_size=tokenizer.vocab_size, layers=2, heads=2, width=32, context=CONTEXT
    )
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    save_model(model, folder, tokenizer)
    ours = harness.as_harness_model(load_model(folder), Tokenizer.load(folder))
    exported, spelled = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return ours, HFLM(pretrained=exported, tokenizer=spelled, batch_size=16, device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> tuple[Any, Any]:
    return pair("qwen3", tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few documents of each set, evenly spread: the harness's time goes with the size of the file."""
    folder = tmp_path_factory.mktemp("data")
    for task in TASKS:
        file = local.file_of(task, SETS)
        lines = gzip.decompress((shared_data / file).read_bytes()).splitlines(keepends=True)
        (folder / Path(file).name).write_bytes(gzip.compress(b"".join(lines[:: len(lines) // DOCUMENTS][:DOCUMENTS])))
    return folder


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, models: Any) -> list[tuple[Any, list[Any]]]:
    """(requests, results) of every call to either model."""
    calls: list[tuple[Any, list[Any]]] = []
    for lm in models:
        inner = lm.loglikelihood

        def outer(requests: Any, *rest: Any, inner: Any = inner, **named: Any) -> Any:
            results = inner(requests, *rest, **named)
            calls.append(([request.args for request in requests], results))
            return results

        monkeypatch.setattr(lm, "loglikelihood", outer)
    return calls


@pytest.mark.parametrize("task", TASKS)
def test_scores_and_accuracies_are_those_of_the_hugging_face_adapter(
    task: str, models: Any, heard: list[Any], data: Path
) -> None:
    config = local.configuration(task, SETS, data)
    ours, theirs = (harness.run_task(lm, config) for lm in models)
    (asked, mine), (asked_too, yours) = heard
    assert asked == asked_too
    assert len(ours.documents) == DOCUMENTS
    for (logprob, greedy), (expected, likeliest) in zip(mine, yours, strict=True):
        assert logprob == pytest.approx(expected, abs=1e-4, rel=2e-6)
        assert greedy == likeliest
    for document, other in zip(ours.documents, theirs.documents, strict=True):
        assert (document.prompt, document.answer) == (other.prompt, other.answer)
        assert document.metrics == pytest.approx(other.metrics, abs=1e-4)
    assert ours.figures == pytest.approx(theirs.figures, rel=1e-4)
    assert all(ours.figures[name] == theirs.figures[name] for name in ours.figures if name.startswith("acc"))
    assert len({logprob for logprob, _ in mine}) > DOCUMENTS / 2


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_other_architectures_agree_too(architecture: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours, theirs = pair(architecture, tokenizer, tmp_path)
    texts = [(f"Question: what is number {i}?\nAnswer:", f" it is {word}") for i in range(9) for word in ("one", "two")]
    requests = [SimpleNamespace(args=args) for args in texts]
    mine, yours = ([score for score, _ in lm.loglikelihood(requests)] for lm in (ours, theirs))
    assert mine == pytest.approx(yours, abs=1e-4)


def test_whole_texts_are_scored_as_by_the_hugging_face_adapter(models: Any, shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text()
    requests = [SimpleNamespace(args=(text[start : start + size],)) for start, size in ((0, 9), (99, 600), (999, 4000))]
    mine, yours = (lm.loglikelihood_rolling(requests) for lm in models)
    assert mine == pytest.approx(yours, rel=2e-6)


def test_greedy_answers_are_those_of_the_hugging_face_adapter(models: Any) -> None:
    settings = {"until": ["\n", " the"], "max_gen_toks": 12, "do_sample": False}
    texts = ["Question: who are you?\nAnswer:", "One", "In the beginning there was " * 40]
    requests = [SimpleNamespace(args=(text, dict(settings))) for text in texts]
    requests.append(SimpleNamespace(args=("Two", {"until": "\n", "max_gen_toks": 3})))
    mine, yours = (lm.generate_until(requests) for lm in models)
    assert mine == yours
    assert all("\n" not in text for text in mine)


def test_an_empty_context_and_one_of_white_space(models: Any) -> None:
    requests = [SimpleNamespace(args=args) for args in (("", "word"), ("A ", "word"), ("A", " word"))]
    mine, yours = (lm.loglikelihood(requests) for lm in models)
    assert [m[0] for m in mine] == pytest.approx([y[0] for y in yours], abs=1e-4)
    assert mine[1][0] == pytest.approx(mine[2][0], abs=1e-5)
    assert models[0].loglikelihood([SimpleNamespace(args=(" ", "word"))])[0][0] < 0


def test_windows_cover_a_text_once() -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for length in (1, 3, 4, 5, 8, 9, 23):
        tokens = list(range(1, length + 1))
        theirs = [make_disjoint_window(w) for w in get_rolling_token_windows(tokens, 0, 4, 1)]
        assert harness.rolling_windows(tokens, 0, 4) == theirs
    assert harness.rolling_windows([], 0, 4) == []


def test_generated_sets_as_tasks(models: Any, tmp_path: Path) -> None:
    choices = tuple(
        Choice(str(i), f"What does f{i} do?", ("Read it.", "Write.", f"Close {i}.", "No"), i % 4) for i in range(8)
    )
    cloze = tuple(Cloze(str(i), f"The file number {i} is", "open") for i in range(3))
    write_sets(Benchmark(choices, cloze, 0, 0), tmp_path / "generated")
    found = harness.run_task(models[0], local.configuration("generated_choice", SETS, tmp_path))
    picked = []
    for item in choices:
        scored = models[0].loglikelihood([SimpleNamespace(args=(f"{item.question}\n", c)) for c in item.choices])
        picked.append(max(range(4), key=lambda i: scored[i][0]))
    assert [d.answer for d in found.documents] == [c.choices[p] for c, p in zip(choices, picked, strict=True)]
    assert found.figures["acc"] == sum(p == c.answer for p, c in zip(picked, choices, strict=True)) / 8
    found = harness.run_task(models[0], local.configuration("generated_cloze", SETS, tmp_path))
    assert len(found.documents) == 3


def test_worked_examples_stand_before_the_question(models: Any, tmp_path: Path) -> None:
    rows = [{"query": f"Is {i} even?", "choices": ["no", "yes"], "gold": i % 2} for i in range(6)]
    (tmp_path / "copa.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    found = harness.run_task(models[0], local.configuration("local_copa", SETS, tmp_path), shots=2, examples=4)
    assert len(found.documents) == 4
    assert all(document.prompt.count("even?") == 3 for document in found.documents)


def test_some_documents_are_spread_over_the_task(models: Any, tmp_path: Path) -> None:
    rows = [{"query": f"Is {i} even?", "choices": ["no", "yes"], "gold": i % 2} for i in range(30)]
    (tmp_path / "copa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = harness.run_task(models[0], local.configuration("local_copa", SETS, tmp_path), examples=3)
    assert [document.prompt for document in found.documents] == ["Is 0 even?", "Is 10 even?", "Is 20 even?"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"hellaswag_val\.jsonl\.gz is not in the folder"):
        local.configuration("local_hellaswag", SETS, tmp_path)


@pytest.mark.soak  # the harness reads its thousands of task files
def test_a_task_that_the_harness_does_not_know_is_named(models: Any) -> None:
    with pytest.raises(BadInput, match="knows no task 'no_such_task'"):
        harness.run_task(models[0], "no_such_task")


def test_a_pattern_stands_for_the_tasks_whose_data_is_there(shared_data: Path, tmp_path: Path) -> None:
    assert local.chosen(["local_*"], SETS, shared_data) == local.local_names(SETS)[2:]
    assert local.chosen(["local_*"], SETS, tmp_path) == []
    assert local.chosen(["local_copa", "mmlu", "local_c*"], SETS, shared_data) == ["local_copa", "mmlu"]
    assert len(TASKS) == 8
