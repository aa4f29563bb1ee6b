"""The clean stage: every drop has its reason, and neither workers nor order change the corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llm_core import artifacts
from llm_core.contract import BadInput, Report
from llm_core.data import acquire, clean
from llm_core.data.document import split_of
from llm_core.settings.acquire import AcquireConfig, EmbeddedSource, FilesSource
from llm_core.settings.clean import CleanConfig, FilterSettings, NearDuplicateSettings, SourceSettings

SENTENCES = [
    f"The {animal} went to the {place} and found that nothing of interest was there to be had with ease."
    for animal in ("dog", "cat", "old horse", "grey goose", "tall heron", "small mouse")
    for place in ("river", "market", "station", "garden", "harbour")
]
LOOSE = SourceSettings(filters=FilterSettings(min_words=5, gopher_quality=False, gopher_repetition=False))


def raw_of(tmp_path: Path, **sources: FilesSource) -> Path:
    config = AcquireConfig(sources=tuple(sources.values()), store=tmp_path / "store")
    acquire.run(config, out=tmp_path / "raw", scratch=tmp_path, emit=lambda _: None)
    return tmp_path / "raw"


def files(folder: Path, name: str, texts: dict[str, str], **settings: Any) -> FilesSource:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        (folder / name / file).write_text(text)
    return FilesSource(kind="files", name=name, paths=(str(folder / name),), **settings)


def cleaned(tmp_path: Path, raw: Path, config: CleanConfig, name: str = "corpus") -> tuple[Path, Report]:
    report = clean.run(
        config,
        raw=raw,
        rules=tmp_path,
        lists=tmp_path,
        heldout=tmp_path,
        out=tmp_path / name,
        scratch=tmp_path,
        emit=lambda _: None,
    )
    return tmp_path / name, report


def rows(corpus: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(corpus / f"{name}.parquet").to_pylist()


def test_reasons_and_duplicates(tmp_path: Path) -> None:
    page = "<html><head><title>T</title>{}</head><body><p>" + " ".join(SENTENCES[:5]) + "</p></body></html>"
    source = files(
        tmp_path,
        "mine",
        {
            "a.txt": SENTENCES[0],
            "b.txt": SENTENCES[0].upper().replace(" ", "\n"),
            "c.txt": "Three words only",
            "e.html": "<div>" * 5_000 + "deep",
            "f.html": page.format('<meta name="robots" content="NOINDEX">'),
            "g.html": page.format(""),
            "h.txt": "",
        },
    )
    corpus, report = cleaned(tmp_path, raw_of(tmp_path, mine=source), CleanConfig(default=LOOSE, workers=1))
    kept = {Path(row["url"]).name: row for row in rows(corpus, "documents")}
    assert sorted(kept) == ["a.txt", "g.html"]
    assert kept["g.html"]["title"] == "T"
    reasons = {Path(row["url"]).name: row["reason"] for row in rows(corpus, "dropped")}
    assert reasons == {
        "b.txt": "duplicate",
        "c.txt": "too_few_words",
        "e.html": "too_deep",
        "f.html": "noindex",
        "h.txt": "no_text",
    }
    assert report.metrics["documents"] == 2
    assert report.metrics["dropped"] == 5
    assert {row["reason"]: row["dropped"] for row in report.tables["reasons"]}["duplicate"] == 1


def test_repeated_paragraphs(tmp_path: Path) -> None:
    common = " ".join(SENTENCES[:2])
    texts = {f"{i}.txt": f"{SENTENCES[5 + i]} {SENTENCES[i]}\n\n{common}\n\nshort line" for i in range(4)}
    settings = LOOSE.model_copy(update={"drop_repeated_paragraphs": True})
    corpus, _ = cleaned(
        tmp_path,
        raw_of(tmp_path, mine=files(tmp_path, "mine", texts)),
        CleanConfig(sources={"mine": settings}, near_duplicates=NearDuplicateSettings(drop=False)),
    )
    kept = rows(corpus, "documents")
    assert [common in row["text"] for row in kept] == [True, False, False, False]
    assert all(row["text"].endswith("short line") for row in kept), "short paragraphs may repeat"
    assert artifacts.read_manifest(corpus)["facts"]["repeated_paragraphs"] == 3


def test_language_filter(tmp_path: Path) -> None:
    german = "Der Hund lief am Morgen durch den Garten und fand dort nichts, was ihn besonders freute. " * 3
    source = files(tmp_path, "mine", {"a.txt": " ".join(SENTENCES[:3]), "b.txt": german})
    settings = LOOSE.model_copy(update={"languages": ("en",)})
    corpus, _ = cleaned(tmp_path, raw_of(tmp_path, mine=source), CleanConfig(default=settings, workers=1))
    assert [row["language"] for row in rows(corpus, "documents")] == ["en"]
    assert [row["reason"] for row in rows(corpus, "dropped")] == ["language"]


def test_workers_and_order_do_not_change_the_corpus(tmp_path: Path) -> None:
    texts = {f"{i:02d}.txt": f"{sentence} Number {i % 20}." for i, sentence in enumerate(SENTENCES * 2)}
    digests = set()
    for place, order in enumerate((sorted(texts), sorted(texts, reverse=True))):
        folder = tmp_path / str(place)
        folder.mkdir()
        source = files(tmp_path / "shared", "mine", {name: texts[name] for name in order})
        raw = raw_of(folder, mine=source)
        for workers in (1, 2):
            corpus, _ = cleaned(folder, raw, CleanConfig(default=LOOSE, workers=workers), f"corpus-{workers}")
            digests.add(artifacts.digest(corpus))
    assert len(digests) == 1


def test_pages_of_a_crawl_are_the_same_with_any_number_of_workers(tmp_path: Path, root: Path) -> None:
    source = EmbeddedSource(modules=("json", "email", "queue"), topics=True)
    config = AcquireConfig(sources=(source,), store=tmp_path / "store")
    acquire.run(config, out=tmp_path / "raw", scratch=tmp_path, emit=lambda _: None)
    for workers in (1, 2):
        clean.run(
            CleanConfig(workers=workers),
            raw=tmp_path / "raw",
            rules=root / "rules",
            lists=root / "lists",
            heldout=root / "heldout",
            out=tmp_path / f"corpus-{workers}",
            scratch=tmp_path,
            emit=lambda _: None,
        )
    assert artifacts.digest(tmp_path / "corpus-1") == artifacts.digest(tmp_path / "corpus-2")
    assert len(rows(tmp_path / "corpus-1", "documents")) > 90


def test_corpus_is_sorted_and_split_by_group(embedded_corpus: Any) -> None:
    documents = rows(embedded_corpus.product, "documents")
    assert [(row["source"], row["url"]) for row in documents] == sorted(
        (row["source"], row["url"]) for row in documents
    )
    assert len({row["id"] for row in documents}) == len(documents)
    dialogues = rows(embedded_corpus.product, "dialogues")
    problems = [row for row in dialogues if row["kind"] == "problem"]
    by_group: dict[str, set[str]] = {}
    for row in problems:
        by_group.setdefault(row["group"], set()).add(row["split"])
        assert row["check"]
    assert all(len(splits) == 1 for splits in by_group.values())
    counts = {split: sum(row["split"] == split for row in problems) for split in ("train", "feedback", "validation")}
    assert counts["validation"] > 900
    assert counts["feedback"] > 2_500
    assert counts["train"] > 7_000
    assert not any(row["split"] == "feedback" for row in dialogues if row["kind"] != "problem")


def test_split_depends_on_the_group_alone() -> None:
    groups = [f"group {i}" for i in range(20_000)]
    splits = [split_of(group, 0.1, 0.25) for group in groups]
    assert abs(splits.count("validation") / 20_000 - 0.1) < 0.01
    assert abs(splits.count("feedback") / 20_000 - 0.25) < 0.015
    assert all(split_of(g, 0.1) == "validation" for g, s in zip(groups, splits, strict=True) if s == "validation")


def test_conversations_pass_their_own_checks(tmp_path: Path) -> None:
    import json

    def talk(*turns: tuple[str, str]) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    dialogues = [
        talk(("user", "Hi"), ("assistant", "Ho")),
        talk(("user", "Hi"), ("assistant", "Ho")),
        talk(("system", "Be kind."), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")),
        talk(("user", "Hi"), ("user", "again")),
        talk(("user", "Hi"), ("assistant", "  ")),
        talk(("user", "unanswered")),
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, dialogues)))
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "Q", "chosen": "a", "rejected": "b"}\n{"prompt": "Q", "chosen": "a", "rejected": "a"}\n'
    )
    raw = raw_of(
        tmp_path,
        d=FilesSource(kind="files", name="d", paths=(f"{tmp_path}/d.jsonl",), holds="dialogues"),
        p=FilesSource(kind="files", name="p", paths=(f"{tmp_path}/p.jsonl",), holds="preferences"),
    )
    corpus, _ = cleaned(tmp_path, raw, CleanConfig())
    assert len(rows(corpus, "dialogues")) == 2
    assert len(rows(corpus, "preferences")) == 1
    assert {(row["what"], row["reason"]) for row in rows(corpus, "dropped")} == {
        ("dialogues", "duplicate"),
        ("dialogues", "roles_do_not_alternate"),
        ("dialogues", "empty_message"),
        ("dialogues", "no_answer"),
        ("preferences", "same_answers"),
    }


def test_nothing_left_is_bad_input(tmp_path: Path) -> None:
    raw = raw_of(tmp_path, mine=files(tmp_path, "mine", {"a.txt": "short"}))
    with pytest.raises(BadInput, match="too_few_words"):
        cleaned(tmp_path, raw, CleanConfig(workers=1))
    with pytest.raises(BadInput, match="'typo' is no source"):
        cleaned(tmp_path, raw, CleanConfig(sources={"typo": LOOSE}))
