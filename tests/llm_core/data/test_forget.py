"""What the forget list names leaves raw, corpus and shards, and is found again where it was left."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data import acquire, clean, forget_list, forget_search, tokenize
from llm_core.data.document import identity
from llm_core.data.forget_list import Forgotten
from llm_core.data.prepare import recorded
from llm_core.settings.acquire import AcquireConfig, EmbeddedSource, FilesSource
from llm_core.settings.clean import CleanConfig, FilterSettings, SourceSettings
from llm_core.settings.tokenize import TokenizeConfig

LOOSE = SourceSettings(filters=FilterSettings(min_words=5, gopher_quality=False, gopher_repetition=False))
SITE = "http://pydoc.localhost/library"


def say(folder: Path, *lines: str) -> Path:
    path = folder / "forget.txt"
    path.write_text("# a remark\n\n" + "".join(f"{line}\n" for line in lines))
    return path


def acquired(folder: Path, config: AcquireConfig, name: str, forget: Path | None = None) -> Path:
    scratch = folder / f"{name}-scratch"
    scratch.mkdir()
    acquire.run(config, forget=forget, out=folder / name, scratch=scratch, emit=lambda _: None)
    return folder / name


def cleaned(folder: Path, raw: Path, name: str, forget: Path | None = None) -> Path:
    scratch = folder / f"{name}-scratch"
    scratch.mkdir()
    config = CleanConfig(default=LOOSE, workers=1)
    clean.run(config, raw=raw, rules=folder, lists=folder, heldout=folder, forget=forget, out=folder / name,
              scratch=scratch, emit=lambda _: None)  # fmt: skip
    return folder / name


def tokenized(folder: Path, corpus: Path, name: str) -> Path:
    scratch = folder / f"{name}-scratch"
    scratch.mkdir()
    config = TokenizeConfig(vocab_size=300, workers=1)
    tokenize.run(config, corpus=corpus, out=folder / name, scratch=scratch, emit=lambda _: None)
    return folder / name


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def test_a_list_says_which_addresses_it_names(tmp_path: Path) -> None:
    forgotten = forget_list.read(
        say(tmp_path, "url HTTPS://Example.org:443/a/../b?utm_source=x#c", "domain Bad.Example", "url notes/mine.txt")
    )
    assert forgotten
    for url in ("https://example.org/b", "http://bad.example/", "https://deep.bad.example:8080/x", "notes/mine.txt"):
        assert forgotten.names(url), url
    for other in ("https://example.org/bb", "https://notbad.example/", "https://example/bad.example", "", None):
        assert not forgotten.names(other), other
    assert not forget_list.read(say(tmp_path))
    assert not forget_list.read(None)


@pytest.mark.parametrize(
    "line",
    [
        "url",
        "domain a/b",
        "document 12",
        f"digest {'g' * 32}",
        "page x",
        "url a b",
        f"document {'a' * 32} 3:12",
        f"document {'a' * 32} ={'a' * 31}",
        f"document {'a' * 32} ^={'a' * 32}",
        f"url a ={'a' * 32}",
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(BadInput, match=r"forget.txt: line 4: "):
        forget_list.read(say(tmp_path, "domain example.org", line))


@given(st.text(max_size=60))
def test_any_line_is_read_or_refused_in_a_sentence(line: str) -> None:
    try:
        kind = forget_list.kind_of(line)
        assert kind in ("url", "domain", "document")
    except BadInput:
        return


def test_a_crawled_page_leaves_raw_and_the_others_stay_readable(tmp_path: Path) -> None:
    source = EmbeddedSource(modules=("json", "csv", "textwrap"), topics=False)
    config = AcquireConfig(sources=(source,), store=tmp_path / "store")
    before = acquired(tmp_path, config, "before") / "python"
    url = f"{SITE}/json.html"
    digest = next(row["digest"] for row in rows(before / "pages.parquet") if row["url"] == f"{SITE}/csv.html")
    store = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.warc.gz")}
    after = acquired(tmp_path, config, "after", say(tmp_path, f"url {url}", f"digest {digest}")) / "python"
    gone = {url, f"{SITE}/csv.html"}
    left = {row["url"]: row for row in rows(after / "pages.parquet")}
    all_before = {row["url"]: row for row in rows(before / "pages.parquet")}
    assert left.keys() == all_before.keys() - gone
    for name, row in left.items():
        assert recorded(row, after / "warc", 10**9) == recorded(all_before[name], before / "warc", 10**9)
    for segment in (after / "warc").iterdir():
        with open(segment, "rb") as file:
            found = {record.rec_headers.get_header("WARC-Target-URI") for record in ArchiveIterator(file)}
        assert gone.isdisjoint(found)
        assert None in found
        assert b"JavaScript Object Notation" not in gzip.decompress(segment.read_bytes())
    assert {row["url"] for row in rows(after / "dialogues.parquet")} == {
        row["url"] for row in rows(before / "dialogues.parquet")
    } - {url}
    assert store == {path: path.read_bytes() for path in store}  # other products are linked to the store's files
    facts = artifacts.read_manifest(after.parent)["facts"]["sources"]["python"]
    assert facts["pages"] == len(left)
    assert facts["forgotten dialogues"] > 0
    artifacts.verify(after.parent)
    assert not list((tmp_path / "after-scratch").glob("python-*"))


@pytest.fixture
def notes(tmp_path: Path) -> FilesSource:
    (tmp_path / "notes").mkdir()
    words = ["river", "market", "station", "garden", "harbour", "mountain", "valley", "forest"]
    for number, word in enumerate(words):
        text = " ".join(f"The {word} of number {number} was seen by {place} people on day {place * number}."
                        for place in range(2, 9))  # fmt: skip
        (tmp_path / "notes" / f"{word}.txt").write_text(text)
    (tmp_path / "notes" / "river-copy.txt").write_text((tmp_path / "notes" / "river.txt").read_text().upper())
    return FilesSource(kind="files", name="notes", paths=(str(tmp_path / "notes"),))


def test_a_text_goes_wherever_it_turns_up_and_the_corpus_is_as_if_it_had_never_been(
    tmp_path: Path, notes: FilesSource
) -> None:
    config = AcquireConfig(sources=(notes,), store=tmp_path / "store")
    raw = acquired(tmp_path, config, "raw")
    corpus = cleaned(tmp_path, raw, "corpus")
    river = next(row for row in rows(corpus / "documents.parquet") if "river" in row["text"].lower())
    listed = cleaned(tmp_path, raw, "listed", say(tmp_path, f"document {river['id']}"))
    dropped = [row for row in rows(listed / "dropped.parquet") if row["reason"] == "forgotten"]
    assert sorted(Path(row["url"]).name for row in dropped) == ["river-copy.txt", "river.txt"]
    assert all(row["excerpt"] == "" for row in dropped)
    by_url = say(tmp_path, *(f"url {row['url']}" for row in dropped))
    swept = acquired(tmp_path, config, "swept", by_url)
    for row in dropped:
        Path(row["url"]).unlink()
    never = acquired(tmp_path, config, "never")
    corpora = [cleaned(tmp_path, raw, f"of-{raw.name}", by_url) for raw in (swept, never)]
    assert artifacts.digest(corpora[0]) == artifacts.digest(corpora[1])
    assert artifacts.digest(corpora[0]) != artifacts.digest(corpus)


def test_rows_go_by_the_digest_that_clean_gives_them(tmp_path: Path, notes: FilesSource) -> None:
    config = AcquireConfig(sources=(notes,), store=tmp_path / "store")
    corpus = cleaned(tmp_path, acquired(tmp_path, config, "raw"), "corpus")
    chosen = rows(corpus / "documents.parquet")[0]
    raw = acquired(tmp_path, config, "again", say(tmp_path, f"digest {chosen['digest']}"))
    assert chosen["url"] not in {row["url"] for row in rows(raw / "notes" / "documents.parquet")}
    assert artifacts.read_manifest(raw)["facts"]["sources"]["notes"]["documents"] == 8


def test_everything_forgotten_is_refused_in_a_sentence(tmp_path: Path, notes: FilesSource) -> None:
    config = AcquireConfig(sources=(notes,), store=tmp_path / "store")
    lines = [f"url {path}" for path in (tmp_path / "notes").iterdir()]
    with pytest.raises(BadInput, match=r"'notes' gave nothing \(.*forgotten documents: 9"):
        acquired(tmp_path, config, "raw", say(tmp_path, *lines))


def test_shards_are_searched_for_ids_and_passages(tmp_path: Path, notes: FilesSource) -> None:
    config = AcquireConfig(sources=(notes,), store=tmp_path / "store")
    raw = acquired(tmp_path, config, "raw")
    corpus = cleaned(tmp_path, raw, "corpus")
    shards = tokenized(tmp_path, corpus, "shards")
    documents = rows(corpus / "documents.parquet")
    river = next(row for row in documents if "river" in row["text"].lower())
    others = [row["text"] for row in documents if row is not river]
    (found,) = forget_search.marks([[river["text"]]], others)
    assert len(found.passages) == forget_search.PASSAGES
    by_id = Forgotten(documents=frozenset([river["id"]]))
    by_passage = Forgotten(documents=frozenset(["0" * 32]), passages=frozenset(found.passages))
    for forgotten, what in ((by_id, "text"), (by_passage, "passage")):
        count, hits = forget_search.Search(forgotten).shards(shards)
        assert count == len(documents)
        assert [hit.what for hit in hits] == [what]
        assert forget_search.Search(forgotten).table(corpus / "documents.parquet")
    line = forget_list.line_of("document", river["id"], found)
    clean_corpus = cleaned(tmp_path, raw, "clean", say(tmp_path, line))
    listed = forget_list.read(tmp_path / "forget.txt")
    assert (listed.passages, listed.openings) == (set(found.passages), set(found.openings))
    count, hits = forget_search.Search(listed).shards(tokenized(tmp_path, clean_corpus, "clean-shards"))
    assert (count, hits) == (len(documents) - 1, [])
    assert not forget_search.Search(listed).table(clean_corpus / "documents.parquet")


def test_a_dialogue_in_shards_is_known_by_its_id(tmp_path: Path, notes: FilesSource) -> None:
    turns = [(f"What is the number of item {n}?", f"Item {n} has the number {n * n}.") for n in range(40)]
    talks = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in turns]
    lines = [json.dumps({"messages": messages}) for messages in talks]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    sources = (FilesSource(kind="files", name="talk", paths=(str(tmp_path / "talk.jsonl"),), holds="dialogues"), notes)
    corpus = cleaned(tmp_path, acquired(tmp_path, AcquireConfig(sources=sources, store=tmp_path), "raw"), "corpus")
    chosen = rows(corpus / "dialogues.parquet")[7]
    shards = tokenized(tmp_path, corpus, "shards")
    hits = forget_search.Search(Forgotten(documents=frozenset([chosen["id"]]))).shards(shards)[1]
    assert [hit.what for hit in hits] == ["text"]
    assert hits[0].file.startswith("dialogues-")


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.integers(1, 13), st.integers(0, 40))
def test_windows_are_hashes_of_runs_of_words(words: list[str], length: int, start: int) -> None:
    codes = forget_search.windows(" ".join(words), length)
    assert len(codes) == max(0, len(words) - length + 1)
    if start + length <= len(words):
        alone = forget_search.windows("\n ".join(words[start : start + length]).upper(), length)
        assert codes[start] == alone[0]
    runs = [tuple(words[place : place + length]) for place in range(len(codes))]
    assert len(set(codes.tolist())) == len(set(runs))


def test_short_excerpts_are_known_by_marks_that_no_other_text_has(tmp_path: Path) -> None:
    page = "Heaps are trees for which every parent is smaller than each of its children; they are kept in lists."
    talks = [["What is heapq for?", "Heaps."], ["What is csv for?", "Yes."]]
    others = ["Heaps are trees for which nothing was written.", "What is bisect for?", " yes. ", *talks[1][:1]]
    found = forget_search.marks([[page], talks[0], talks[1]], others)
    assert [words for words, _ in found[0].openings] == [6], "four words stand in another text, too"
    assert found[1].parts == tuple(sorted(map(identity, talks[0])))
    assert found[2].parts == (), "both stand in texts that stay"
    line = (
        forget_list.line_of("document", "0" * 32, found[0]) + "\n" + forget_list.line_of("document", "1" * 32, found[1])
    )
    search = forget_search.Search(forget_list.read(say(tmp_path, line)))
    for text, told in (
        ("heaps are  TREES for which every parent is smal", True),
        ("What is heapq for?", True),
        ("heaps.", True),
        (f"{'0' * 32}-001697", True),
        ("Heaps are trees", False),
        ("Well: heaps are trees for which every parent is there.", False),
        ("What is heapq?", False),
        ("What is csv for?", False),
        ("2" * 32, False),
    ):
        pq.write_table(pa.table({"number": [1], "text": [text]}), tmp_path / "rows.parquet")
        assert search.table(tmp_path / "rows.parquet") is told, text


def test_an_id_is_that_of_the_text(tmp_path: Path) -> None:
    assert forget_search.Search(Forgotten(documents=frozenset([identity("Some  TEXT")]))).what(["some text"]) == "text"
    assert forget_search.Search(Forgotten()).what(["some text"]) is None
