"""The corpus as a whole: the same bytes in any order, copies across sources, evaluation sets kept out, drops listed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core import artifacts
from llm_core.contract import BadInput, Report
from llm_core.data import candidates, clean, corpus, minhash
from llm_core.data.document import RAW_DIALOGUES, RAW_DOCUMENTS, RAW_PREFERENCES
from llm_core.settings.clean import (
    CleanConfig,
    FilterSettings,
    NearDuplicateSettings,
    SourceSettings,
    UrlSettings,
)

LOOSE = SourceSettings(filters=FilterSettings(min_words=5, gopher_quality=False, gopher_repetition=False))
SCHEMAS = {"documents": RAW_DOCUMENTS, "dialogues": RAW_DIALOGUES, "preferences": RAW_PREFERENCES}


def raw_of(folder: Path, tables: dict[str, dict[str, list[dict[str, Any]]]], seed: int | None = None) -> Path:
    """A raw product of these rows by source and kind; with a seed, shuffled, and in row groups of another size."""
    facts = {"sources": {name: {"kind": "files", "licence": "MIT", "weight": 2.0} for name in tables}}
    with artifacts.new_product(folder, "raw", facts) as product:
        for source, kinds in tables.items():
            (product / source).mkdir()
            for kind, rows in kinds.items():
                rows = list(rows)
                if seed is not None:
                    random.Random(seed).shuffle(rows)
                table = pa.Table.from_pylist(rows, schema=SCHEMAS[kind])
                pq.write_table(table, product / source / f"{kind}.parquet", row_group_size=7 + (seed or 0))
    return folder


def cleaned(folder: Path, raw: Path, config: CleanConfig, name: str = "corpus") -> tuple[Path, Report]:
    for part in ("rules", "lists", "heldout"):
        (folder / part).mkdir(exist_ok=True)
    report = clean.run(
        config,
        raw=raw,
        rules=folder / "rules",
        lists=folder / "lists",
        heldout=folder / "heldout",
        out=folder / name,
        scratch=folder / "scratch",
        emit=lambda _: None,
    )
    assert list((folder / "scratch").iterdir()) == [], "records are removed"
    return folder / name, report


def rows(product: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(product / f"{name}.parquet").to_pylist()


def page(url: str | None, text: str, **more: Any) -> dict[str, Any]:
    return {"url": url, "text": text, "content_type": "text/plain", **more}


def talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "kind": "dialogue", **more}


@pytest.fixture(scope="module")
def prose(shared_data: Path) -> list[str]:
    """Wikipedia paragraphs of 60 words or more."""
    lines = (shared_data / "wikitext2" / "valid.txt").read_text().split("\n")
    return [line.strip() for line in lines if len(line.split()) >= 60][:120]


def test_same_bytes_for_any_order_and_number_of_workers(
    tmp_path: Path, prose: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "TASK_BYTES", 3_000)
    altered = [text.replace(" the ", " that ", 2) for text in prose[:30]]
    first = [page(f"https://a.example/{n % 90}", text) for n, text in enumerate(prose + prose[:9])]
    second = [page(None if n % 3 else f"https://a.example/{n}", text) for n, text in enumerate(altered)]
    menu = "This very line stands on each page of the site, whatever it says.\n"
    third = [page(f"https://c.example/{n}", menu + text) for n, text in enumerate(prose[60:80])]
    tables = {
        "a": {"documents": first},
        "b": {"documents": second, "dialogues": [talk(f"Q {n % 17}", f"A {n % 17}") for n in range(40)]},
        "c": {
            "documents": third,
            "preferences": [
                {"prompt": talk(f"P{n}", "")["messages"][:1], "chosen": "x", "rejected": "y"} for n in range(9)
            ],
        },
    }
    config = CleanConfig(default=LOOSE, sources={"c": LOOSE.model_copy(update={"drop_repeated_lines": True})})
    digests = {}
    for number, (seed, workers) in enumerate(((None, 1), (1, 2), (2, 3), (3, 1))):
        raw = raw_of(tmp_path / f"raw-{number}", tables, seed)
        product, report = cleaned(tmp_path, raw, config.model_copy(update={"workers": workers}), f"corpus-{number}")
        digests[seed, workers] = artifacts.digest(product)
    assert len(set(digests.values())) == 1, digests
    assert report.metrics["near_duplicates"] >= 20
    reasons = {row["reason"] for row in report.tables["reasons"]}
    assert reasons >= {"duplicate", "duplicate_url", "near_duplicate"}
    assert artifacts.read_manifest(product)["facts"]["repeated_lines"] > 0
    kept = rows(product, "documents")
    assert [(row["source"], row["url"] or "") for row in kept] == sorted((r["source"], r["url"] or "") for r in kept)
    assert len(rows(product, "dialogues")) == 17


def test_near_duplicates_keep_the_longest_and_name_their_cluster(tmp_path: Path, prose: list[str]) -> None:
    text = " ".join(prose[:4])
    longer = text.replace(" the ", " a ", 2) + " One more sentence stands at the end."
    documents = [
        page("https://a.example/1", text),
        page("https://a.example/2", longer),
        page("https://a.example/3", prose[9]),
    ]
    raw = raw_of(tmp_path / "raw", {"a": {"documents": documents}})
    product, report = cleaned(tmp_path, raw, CleanConfig(default=LOOSE, workers=1))
    kept = {row["url"]: row for row in rows(product, "documents")}
    assert sorted(kept) == ["https://a.example/2", "https://a.example/3"]
    (dropped,) = rows(product, "dropped")
    assert (dropped["url"], dropped["reason"], dropped["what"]) == (
        "https://a.example/1",
        "near_duplicate",
        "documents",
    )
    assert dropped["cluster"] == kept["https://a.example/2"]["cluster"] == kept["https://a.example/2"]["id"]
    assert kept["https://a.example/3"]["cluster"] is None
    (cluster,) = report.tables["clusters"]
    assert (cluster["kept"], cluster["dropped"]) == ("https://a.example/2", "https://a.example/1")
    facts = artifacts.read_manifest(product)["facts"]
    assert facts["near_duplicates"] == {"algorithm": minhash.ALGORITHM, "threshold": 0.7}
    assert facts["weights"] == {"a": 2.0}
    off = CleanConfig(default=LOOSE, workers=1, near_duplicates=NearDuplicateSettings(drop=False))
    assert len(rows(cleaned(tmp_path, raw, off)[0], "documents")) == 3


def test_evaluation_sets_are_kept_out(tmp_path: Path, prose: list[str]) -> None:
    (tmp_path / "heldout").mkdir()
    asked = " ".join(prose[0].split()[5:30])
    (tmp_path / "heldout" / "quiz.jsonl").write_text(f'{{"question": "{asked.replace(chr(34), "")}"}}\n')
    tables = {
        "a": {
            "documents": [page(f"https://a.example/{n}", text) for n, text in enumerate(prose[:5])],
            "dialogues": [talk(f"Is it true that {asked}?", "yes"), talk("Is it?", "It is.")],
        }
    }
    product, report = cleaned(tmp_path, raw_of(tmp_path / "raw", tables), CleanConfig(default=LOOSE, workers=1))
    hits = rows(product, "contaminated")
    assert [(row["what"], row["url"], row["set"], row["item"]) for row in hits] == [
        ("documents", "https://a.example/0", "quiz.jsonl", "0"),
        ("dialogues", None, "quiz.jsonl", "0"),
    ]
    assert all(len(row["words"].split()) == 13 for row in hits)
    assert [(row["what"], row["reason"]) for row in rows(product, "dropped")] == [
        ("documents", "contaminated"),
        ("dialogues", "contaminated"),
    ]
    assert report.tables["contamination"] == [{"set": "quiz.jsonl", "hits": 2}]
    assert len(rows(product, "documents")) == 4


def test_every_document_leads_back_to_its_row(tmp_path: Path, prose: list[str]) -> None:
    import xxhash

    tables = {"a": {"documents": [page(None, text) for text in prose[:20]], "dialogues": [talk("Q", "A", url="u#1")]}}
    product, _ = cleaned(tmp_path, raw_of(tmp_path / "raw", tables), CleanConfig(default=LOOSE, workers=1))
    digests = {xxhash.xxh3_128_hexdigest(text.encode()) for text in prose[:20]}
    kept = rows(product, "documents")
    assert {row["digest"] for row in kept} == digests
    assert {row["url"] for row in kept} == {None}
    (dialogue,) = rows(product, "dialogues")
    assert (dialogue["url"], len(dialogue["digest"])) == ("u#1", 32)


def test_dropped_rows_are_listed_by_reason(tmp_path: Path, prose: list[str]) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "domains.txt").write_text("spam.example\n")
    settings = LOOSE.model_copy(
        update={"filters": LOOSE.filters.model_copy(update={"urls": UrlSettings(domains=("domains.txt",))})}
    )
    documents = [
        page("https://a.example/1", prose[0]),
        page("https://spam.example/2", prose[1]),
        page(None, "Too short."),
    ]
    raw = raw_of(tmp_path / "raw", {"a": {"documents": documents}})
    product, _ = cleaned(tmp_path, raw, CleanConfig(default=settings, workers=1))
    assert [row["reason"] for row in corpus.dropped_rows(product)] == ["too_few_words", "url_domain"]
    (row,) = corpus.dropped_rows(product, "url_domain")
    assert (row["url"], row["source"], row["what"]) == ("https://spam.example/2", "a", "documents")
    with pytest.raises(BadInput, match=r"for 'typo'.*too_few_words \(1\), url_domain \(1\)"):
        list(corpus.dropped_rows(product, "typo"))
    absent = settings.model_copy(update={"filters": FilterSettings(bad_words=("absent.txt",))})
    with pytest.raises(BadInput, match=r"'absent\.txt', which is not in"):
        cleaned(tmp_path, raw, CleanConfig(default=absent, workers=1))


def test_thresholds_reach_the_filters(tmp_path: Path, prose: list[str]) -> None:
    raw = raw_of(tmp_path / "raw", {"a": {"documents": [page(f"u{n}", text) for n, text in enumerate(prose[:10])]}})
    base = FilterSettings(gopher_repetition=False)
    strict = base.model_copy(update={"quality": base.quality.model_copy(update={"min_words": 10_000})})
    kept, _ = cleaned(tmp_path, raw, CleanConfig(default=SourceSettings(filters=base), workers=1), "kept")
    assert len(rows(kept, "documents")) > 5
    with pytest.raises(BadInput, match="gopher_short_doc"):
        cleaned(tmp_path, raw, CleanConfig(default=SourceSettings(filters=strict), workers=1))


def test_large_row_groups_are_carried_to_the_workers(
    tmp_path: Path, prose: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_of(tmp_path / "raw", {"a": {"documents": [page(f"u{n}", text) for n, text in enumerate(prose)]}})
    usual, _ = cleaned(tmp_path, raw, CleanConfig(default=LOOSE, workers=1), "usual")
    monkeypatch.setattr(candidates, "CARRIED_BYTES", 100)
    carried, _ = cleaned(tmp_path, raw, CleanConfig(default=LOOSE, workers=2), "carried")
    assert artifacts.digest(usual) == artifacts.digest(carried)


def test_hostile_rows_are_counted_and_never_end_the_stage(tmp_path: Path, prose: list[str]) -> None:
    texts = [
        "",
        None,
        "\x00\x01",
        "\ufffd" * 400,
        "a" * 300_000,
        "{" * 5_000,
        "<|endoftext|> " * 90,
        prose[3],
        "\u202e" * 99,
    ]
    addresses = [
        "http://[bad?utm_source=x",
        "",
        None,
        "not a url",
        "http://" + "a" * 5_000,
        "javascript:0",
        "http://ü.example/ß",
    ]
    documents = [page(address, text) for text in texts for address in addresses]
    documents += [page("x", prose[4], content_type=kind) for kind in (None, "", "text/html", "image/png", "x" * 1_000)]
    message = {"role": "user", "content": "Hi"}
    dialogues = [
        {"messages": messages, "kind": kind}
        for kind in (None, "problem")
        for messages in (None, [], [None], [{"role": None, "content": None}], [message], [message, None, message])
    ]
    dialogues.append(talk("What is 1 + 1?", "two", check="1 +"))
    preferences = [
        {"prompt": prompt, "chosen": chosen, "rejected": "b"}
        for prompt in (None, [], [message])
        for chosen in (None, "a")
    ]
    raw = raw_of(tmp_path / "raw", {"a": {"documents": documents, "dialogues": dialogues, "preferences": preferences}})
    product, report = cleaned(tmp_path, raw, CleanConfig(default=LOOSE, workers=1))
    funnel = {row["what"]: (row["in"], row["kept"]) for row in report.tables["funnel"]}
    assert funnel["documents"][0] == len(documents)
    assert funnel["dialogues"] == (13, 0)
    assert funnel["preferences"] == (6, 1)
    assert len(rows(product, "dropped")) == sum(row["dropped"] for row in report.tables["reasons"])
    assert len(rows(product, "documents")) + len(rows(product, "dropped")) == len(documents) + 13 + 5
