"""The stages pretrain and sft on tiny shards: they learn, resume, and give the same bytes twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from llm_core.artifacts import digest, new_product, read_manifest
from llm_core.contract import BadInput, Event, Metric, Note, Progress, Report, Resumed, Stop
from llm_core.data import bpe, dialogue
from llm_core.data.bpe import Tokenizer
from llm_core.data.shards import KINDS, Shards, ShardWriter, describe
from llm_core.model.checkpoint import load_model
from llm_core.model.lora import load_adapter
from llm_core.settings.pretrain import PretrainConfig
from llm_core.settings.sft import SftConfig
from llm_core.train import pretrain, sft

TINY = {"layers": 2, "heads": 2, "width": 32, "context": 32}


def pages(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    things, deeds = ["queue", "socket", "path", "thread"], ["Return", "Close", "Open", "Join"]
    return [
        "\n".join(f"{draw.choice(deeds)} the {draw.choice(things)} object." for _ in range(20)) for _ in range(count)
    ]


def make_shards(out: Path, dialogues: int = 60) -> Path:
    """Shards as tokenize writes them, of pages from a tiny grammar and questions with one-word answers."""
    texts = {"train": pages(30, 1), "validation": pages(4, 2)}
    tokenizer = bpe.train(texts["train"], 300, bpe.DIGITS1)
    facts = describe(tokenizer)
    splits = {}
    with new_product(out, "shards", facts) as product:
        tokenizer.save(product / "tokenizer")
        for split, found in texts.items():
            writer = ShardWriter(product, split, "<u2")
            for text in found:
                writer.append([*tokenizer.encode(text), tokenizer.end_id])
            writer.close()
            splits[split] = {"bytes": sum(len(text.encode()) for text in found), "sources": {"x": (0, len(found))}}
            talk, kinds = ShardWriter(product, f"dialogues-{split}", "<u2", ("mask",)), []
            for number in range(dialogues):
                kind = KINDS.index("problem" if number % 2 else "docstring")
                messages = [
                    {"role": "user", "content": f"What is {number % 5} plus 1?"},
                    {"role": "assistant", "content": str(number % 5 + 1)},
                ]
                ids, mask = dialogue.encode(messages, tokenizer)
                talk.append(ids, mask=mask)
                kinds.append(kind)
            talk.close()
            (product / f"dialogues-{split}.kinds").write_bytes(bytes(kinds))
        facts["splits"] = splits
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards") / "shards")


def base_config(**changes: object) -> PretrainConfig:
    settings = {"model": TINY, "steps": 40, "threads": 1, "evaluate_every": 20, "sample_tokens": 8} | changes
    return PretrainConfig.model_validate(settings)


def run_pretrain(config: PretrainConfig, shards: Path, place: Path, stop_at: int = -1) -> tuple[Report, list[Event]]:
    scratch = place / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.done == stop_at:
            raise Stop

    return pretrain.run(config, shards=shards, out=place / "base", scratch=scratch, emit=emit), events


@pytest.fixture(scope="module")
def base(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base")
    run_pretrain(base_config(), shards, place)
    return place / "base"


def test_pretrain_learns_and_tells(shards: Path, tmp_path: Path) -> None:
    report, events = run_pretrain(base_config(), shards, tmp_path)
    curve = [
        event.values["train/loss"] for event in events if isinstance(event, Metric) and "train/loss" in event.values
    ]
    assert curve[-1] < 0.7 * curve[0]
    held_out = [e for e in events if isinstance(e, Metric) and "validation/bits_per_byte" in e.values]
    assert [event.step for event in held_out] == [20, 40]
    assert report.metrics["bits_per_byte"] < 2.0
    assert report.metrics["tokens_seen"] == 40 * base_config().batch_sequences * 32
    assert len(report.samples) == 4
    assert all(set(sample) == {"prompt", "text"} for sample in report.samples)


def test_bits_per_byte_counts_every_byte(shards: Path, base: Path) -> None:
    figures = read_manifest(base, "base")["facts"]["figures"]
    texts = pages(4, 2)
    tokens = sum(len(Tokenizer.load(base).encode(text)) + 1 for text in texts)
    assert figures["validation_tokens"] == tokens
    expected = figures["loss"] * tokens / 0.6931471805599453 / sum(len(text.encode()) for text in texts)
    assert figures["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_another_others(shards: Path, base: Path, tmp_path: Path) -> None:
    run_pretrain(base_config(), shards, tmp_path / "again")
    assert digest(tmp_path / "again" / "base") == digest(base)
    run_pretrain(base_config(seed=2), shards, tmp_path / "other")
    weights = "model.safetensors"
    assert (tmp_path / "other" / "base" / weights).read_bytes() != (base / weights).read_bytes()


def test_stopped_and_resumed_it_gives_the_same_bytes(shards: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run_pretrain(base_config(), shards, tmp_path, stop_at=23)
    assert not (tmp_path / "base").exists()
    _, events = run_pretrain(base_config(), shards, tmp_path)
    assert Resumed(23) in events
    assert digest(tmp_path / "base") == digest(base)


@pytest.mark.parametrize("preset", ["seed", "gpt2", "llama", "speedrun"])
def test_every_preset_trains_and_its_directory_opens(preset: str, shards: Path, tmp_path: Path) -> None:
    optimizer = {"name": "adamw", "learning_rate": 3e-4, "embedding_learning_rate": None}
    config = base_config(
        model=TINY | {"preset": preset}, steps=3, optimizer=optimizer, schedule={"name": "cosine"}, dialogue_share=0.25
    )
    run_pretrain(config, shards, tmp_path)
    assert load_model(tmp_path / "base").config.architecture == preset


def test_sft_learns_the_answers(base: Path, shards: Path, tmp_path: Path) -> None:
    config = SftConfig(steps=120, threads=1, batch_dialogues=16, evaluate_every=60, sample_count=2)
    reports = []
    for name in ("one", "two"):
        (tmp_path / name / "scratch").mkdir(parents=True)
        events: list[Event] = []
        report = sft.run(
            config,
            base=base,
            shards=shards,
            out=tmp_path / name / "chat",
            scratch=tmp_path / name / "scratch",
            emit=events.append,
        )
        reports.append(report)
    assert reports[0].metrics["problem_accuracy"] == 1.0
    assert reports[0].metrics["docstring_loss"] < 0.2
    sample = next(sample for sample in reports[0].samples if sample["kind"] == "problem")
    assert sample["text"] == sample["true"] != ""
    assert "plus 1?" in sample["prompt"]
    assert digest(tmp_path / "one" / "chat") == digest(tmp_path / "two" / "chat")
    assert any("validation/problem_accuracy" in event.values for event in events if isinstance(event, Metric))


def test_sft_by_lora_learns_and_keeps_the_adapter_beside_the_merged_model(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    lora = {"rank": 8, "alpha": 16, "dropout": 0.0}
    config = SftConfig.model_validate(
        {
            "steps": 80,
            "threads": 1,
            "batch_dialogues": 16,
            "evaluate_every": 80,
            "lora": lora,
            "sample_count": 1,
            "optimizer": {"name": "adamw", "learning_rate": 0.02},
        }
    )
    digests = []
    for name in ("one", "two"):
        (tmp_path / name / "scratch").mkdir(parents=True)
        place = {
            "base": base,
            "shards": shards,
            "out": tmp_path / name / "chat",
            "scratch": tmp_path / name / "scratch",
        }
        report = sft.run(config, **place, emit=lambda event: None)
        digests.append(digest(tmp_path / name / "chat"))
    assert digests[0] == digests[1]
    frozen, merged = load_model(base), load_model(tmp_path / "one" / "chat")
    assert torch.equal(frozen.model.embed_tokens.weight, merged.model.embed_tokens.weight)
    tokens = torch.arange(30)[None]
    assert not torch.allclose(frozen(tokens), merged(tokens), atol=1e-2)
    load_adapter(frozen, tmp_path / "one" / "chat" / "adapter")
    assert torch.allclose(frozen(tokens), merged(tokens), atol=1e-4)
    # the answers' digits never stood in the pages, and their rows of the head are frozen: there is not much to gain
    before = sft.HeldOut(Shards.open(shards), TINY["context"]).figures(load_model(base))
    assert report.metrics["loss"] < 0.9 * before["validation/loss"]


def test_shards_without_dialogues_are_named(base: Path, tmp_path: Path) -> None:
    empty = make_shards(tmp_path / "shards", dialogues=0)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(BadInput, match="no training dialogues"):
        sft.run(SftConfig(), base=base, shards=empty, out=tmp_path / "chat", scratch=tmp_path / "scratch", emit=print)
    with pytest.raises(BadInput, match="dialogue_share"):
        run_pretrain(base_config(dialogue_share=0.5), empty, tmp_path)


def test_pretrain_tells_what_was_expected_beside_what_came(shards: Path, tmp_path: Path) -> None:
    law = {"name": "own ladder", "E": 0.5, "A": 3.0, "B": 20.0, "alpha": 0.3, "beta": 0.3}
    report, events = run_pretrain(base_config(law=law), shards, tmp_path)
    loss, seconds = report.tables["prediction"]
    data = Shards.open(shards)
    shape = base_config().model.build(data.vocab_size)
    tokens, unique = int(report.metrics["tokens_seen"]), len(data.tokens("train"))
    assert loss["predicted"] == base_config(law=law).law.build().loss(shape.parameters(), tokens, unique)
    assert loss["actual"] == report.metrics["loss"]
    assert seconds["actual"] == report.metrics["train_seconds"]
    assert report.metrics["predicted_seconds"] > 0
    assert any(isinstance(event, Note) and "expected" in event.text for event in events)


def test_sft_packed_with_pages_learns_and_forgets_less(base: Path, shards: Path, tmp_path: Path) -> None:
    """Pages among the dialogues keep the page loss down; what is packed gives equal bytes, stopped early or twice."""
    found = {}
    for name, settings in {"plain": {}, "pages": {"page_share": 0.25}, "again": {"page_share": 0.25}}.items():
        (tmp_path / name / "scratch").mkdir(parents=True)
        config = SftConfig.model_validate(
            {"steps": 60, "threads": 1, "batch_dialogues": 16, "evaluate_every": 20, "packing": True, "patience": 2}
            | settings
        )
        report = sft.run(
            config, base=base, shards=shards, out=tmp_path / name / "chat", scratch=tmp_path / name / "scratch",
            emit=lambda event: None,
        )  # fmt: skip
        found[name] = report.metrics
    assert found["pages"]["page_bits_per_byte"] < 0.9 * found["plain"]["page_bits_per_byte"]
    assert found["plain"]["problem_loss"] < 2.0
    assert digest(tmp_path / "pages" / "chat") == digest(tmp_path / "again" / "chat")
