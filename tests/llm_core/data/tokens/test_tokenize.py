"""The tokenize stage: shards that give the text back, weights, masks, reports, and the same bytes for any workers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_core import artifacts
from llm_core.contract import BadInput, Progress, Stop
from llm_core.data import bpe, clean, dialogue, reading, tokenize
from llm_core.data.bpe import Tokenizer
from llm_core.data.document import RAW_DOCUMENTS, split_of
from llm_core.data.mixture import copies
from llm_core.data.shards import Shards
from llm_core.settings.clean import CleanConfig, FilterSettings, SourceSettings
from llm_core.settings.tokenize import TokenizeConfig


def rows(corpus: Path, name: str, split: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(corpus / f"{name}.parquet").to_pylist() if row["split"] == split]


@pytest.fixture(scope="module")
def shards(embedded_shards: Any) -> Shards:
    return Shards.open(embedded_shards.product)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_documents_come_back(shards: Shards, embedded_corpus: Any, split: str, texts_of: Any) -> None:
    documents = rows(embedded_corpus.product, "documents", split)
    assert texts_of(shards, split) == [row["text"] for row in documents]
    assert shards.text_bytes(split) == sum(len(row["text"].encode()) for row in documents)
    assert shards.sources(split) == {"python": (0, len(documents))}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_dialogues_come_back_with_their_masks(shards: Shards, embedded_corpus: Any, split: str) -> None:
    expected = rows(embedded_corpus.product, "dialogues", split)
    found = shards.dialogues(split)
    assert len(found) == len(expected)
    end = shards.tokenizer.specials["<|end|>"]
    for place in range(0, len(expected), 37):
        span = slice(int(found.offsets[place]), int(found.offsets[place + 1]))
        ids, mask, row = found.tokens[span], found.mask[span], expected[place]
        assert found.kind_names[found.kinds[place]] == row["kind"]
        trained = ids[mask == 1].tolist()
        assert trained[-1] == end
        assert shards.tokenizer.decode(trained[:-1]) == row["messages"][-1]["content"]
        prompt = dialogue.encode_prompt(row["messages"][:-1], shards.tokenizer)
        assert ids[: len(prompt)].tolist() == prompt
        assert not mask[: len(prompt)].any()


def test_feedback_problems_are_in_no_shard(shards: Shards, embedded_corpus: Any) -> None:
    total = sum(len(shards.dialogues(split)) for split in ("train", "validation"))
    feedback = len(rows(embedded_corpus.product, "dialogues", "feedback"))
    assert feedback > 2_500
    assert total == pq.read_metadata(embedded_corpus.product / "dialogues.parquet").num_rows - feedback


def test_shape_of_the_default(shards: Shards) -> None:
    assert shards.vocab_size == 2048
    assert shards.tokens("train").dtype == np.dtype("<u2")
    assert int(shards.tokens("train").max()) < shards.vocab_size
    assert 400_000 < len(shards.tokens("train")) < 700_000
    assert 0.05 < shards.text_bytes("validation") / shards.text_bytes("train") < 0.2
    problem = shards.dialogues("train").kind_names.index("problem")
    kinds = shards.dialogues("train").kinds
    lengths = np.diff(shards.dialogues("train").offsets)[kinds == problem]
    assert lengths.max() < 64, "problems fit into the smallest context"


def test_same_bytes_with_workers_and_smaller_slices(
    tmp_path: Path, embedded_corpus: Any, embedded_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "ALONE_BYTES", 0)
    monkeypatch.setattr(reading, "SLICE_BYTES", 200_000)
    monkeypatch.setattr(reading, "BATCH_BYTES", 50_000)
    assert len(list(reading.slices(embedded_corpus.product / "documents.parquet"))) > 5
    tokenize.run(
        TokenizeConfig(workers=2),
        corpus=embedded_corpus.product,
        out=tmp_path / "shards",
        scratch=tmp_path,
        emit=lambda _: None,
    )
    assert artifacts.digest(tmp_path / "shards") == artifacts.digest(embedded_shards.product)


def test_same_bytes_for_any_row_groups(tmp_path: Path, make_corpus: Any, run_stage: Any, rows_of: Any) -> None:
    documents = rows_of.plain(60) + rows_of.plain(30, "two")
    found = set()
    for size in (1, 7, 1_000):
        corpus = make_corpus(tmp_path / f"corpus{size}", documents, weights={"two": 2.5}, row_group=size)
        found.add(artifacts.digest(run_stage(corpus, tmp_path / f"{size}")[0].path))
    assert len(found) == 1


def test_sources_stand_as_often_as_their_weights_say(
    tmp_path: Path, make_corpus: Any, run_stage: Any, rows_of: Any, texts_of: Any
) -> None:
    documents = rows_of.plain(50, "half") + rows_of.plain(50, "often") + rows_of.plain(50, "once")
    corpus = make_corpus(tmp_path / "corpus", documents, weights={"half": 0.5, "once": 4.0, "often": 2.5})
    shards, report = run_stage(corpus, tmp_path, weights={"once": 1})
    weights = {"half": 0.5, "once": 1.0, "often": 2.5}
    train = [row for row in documents if row["split"] == "train"]
    expected = Counter({row["text"]: copies(row["id"], weights[row["source"]]) for row in train})
    assert Counter(texts_of(shards, "train")) == +expected
    assert texts_of(shards, "validation") == [row["text"] for row in documents if row["split"] == "validation"]
    by_source = {row["source"]: row for row in report.tables["mixture of the training stream"]}
    for source, (low, high) in shards.sources("train").items():
        texts = texts_of(shards, "train")[low:high]
        assert all(f" {source} " in text for text in texts)
        assert (by_source[source]["weight"], by_source[source]["documents_in_stream"]) == (weights[source], len(texts))
    assert sum(row["share_of_stream"] for row in by_source.values()) == pytest.approx(1.0)
    assert shards.text_bytes("train") == sum(len(text.encode()) for text in texts_of(shards, "train"))
    assert len(shards.offsets("train")) - 1 == sum(expected.values())


def test_a_weight_for_an_unknown_source_is_bad_input(
    tmp_path: Path, make_corpus: Any, run_stage: Any, rows_of: Any
) -> None:
    corpus = make_corpus(tmp_path / "corpus", rows_of.plain(10))
    with pytest.raises(BadInput, match=r"tokenize\.weights: 'other' is no source of the corpus; those are one"):
        run_stage(corpus, tmp_path, weights={"other": 2})
    with pytest.raises(ValidationError, match="weights"):
        TokenizeConfig(weights={"one": 0})


texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=12)


@given(texts)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back(
    tmp_path_factory: Any, make_corpus: Any, run_stage: Any, rows_of: Any, texts_of: Any, texts: list[str]
) -> None:
    place = tmp_path_factory.mktemp("any")
    documents = [rows_of.document("train on this", split="train")]
    documents += [{**rows_of.document(text, split="train"), "id": str(n)} for n, text in enumerate(texts)]
    shards, report = run_stage(make_corpus(place / "corpus", documents), place)
    assert texts_of(shards, "train") == ["train on this", *(text for text in texts if text)]
    assert report.metrics["empty_documents"] == texts.count("")


def test_bad_text_is_encoded_or_counted(
    tmp_path: Path, make_corpus: Any, run_stage: Any, rows_of: Any, texts_of: Any
) -> None:
    spelled = "".join(bpe.SPECIALS) * 20
    wordless, blank = "x" * 10_000_000, "a" + " " * 2_000_000 + "b"
    documents = [rows_of.document(text, split="train") for text in (spelled, wordless, blank)]
    documents += [{**rows_of.document("", split="train"), "text": empty} for empty in ("", None)]
    talk = [rows_of.dialogue(spelled, spelled)]
    shards, report = run_stage(make_corpus(tmp_path / "corpus", documents, talk), tmp_path)
    assert texts_of(shards, "train") == [spelled, wordless, blank]
    assert report.metrics["empty_documents"] == 2
    specials, ids = shards.tokenizer.specials, shards.dialogues("train").tokens.tolist()
    expected = Counter([specials["<|user|>"], specials["<|assistant|>"], specials["<|end|>"], specials["<|end|>"]])
    assert Counter(token for token in ids if token in specials.values()) == expected


def cleaned(folder: Path, sources: dict[str, list[str]]) -> Path:
    """A corpus that clean makes of texts by source, their order turned round."""
    loose = SourceSettings(filters=FilterSettings(gopher_quality=False, gopher_repetition=False))
    for name in ("rules", "lists", "heldout", "scratch"):
        (folder / name).mkdir(parents=True)
    facts = {"sources": {name: {"weight": 1.5} for name in sources}}
    with artifacts.new_product(folder / "raw", "raw", facts) as product:
        for name, texts in sources.items():
            (product / name).mkdir()
            rows = [{"text": text, "content_type": "text/plain"} for text in reversed(texts)]
            pq.write_table(pa.Table.from_pylist(rows, schema=RAW_DOCUMENTS), product / name / "documents.parquet")
    parts = {name: folder / name for name in ("raw", "rules", "lists", "heldout", "scratch")}
    config = CleanConfig(default=loose, validation_share=0.2, workers=1)
    clean.run(config, **parts, out=folder / "corpus", emit=lambda _: None)
    return folder / "corpus"


def test_more_data_moves_no_document_between_splits(
    tmp_path: Path, shared_data: Path, run_stage: Any, texts_of: Any
) -> None:
    """Real paragraphs, then twice as many from two sources: each stands in the split in which it stood."""
    lines = (shared_data / "wikitext2" / "valid.txt").read_text(encoding="utf-8").split("\n")
    prose = [line.strip() for line in lines if len(line.split()) >= 60][:160]
    few = cleaned(tmp_path / "few", {"one": prose[:80]})
    more = cleaned(tmp_path / "more", {"another": prose[80:120], "one": prose[:80] + prose[120:]})
    before, report = run_stage(few, tmp_path / "a")
    after, _ = run_stage(more, tmp_path / "b")
    assert report.tables["mixture of the training stream"][0]["weight"] == 1.5
    for split, other in (("train", "validation"), ("validation", "train")):
        stood = set(texts_of(before, split))
        assert stood
        assert stood <= set(texts_of(after, split))
        assert not stood & set(texts_of(after, other))
    assert Counter(texts_of(after, "train")) >= Counter(texts_of(before, "train")), "repeats do not move either"


def test_the_hash_that_splits_stays() -> None:
    """Pinned: another version of the hash would move documents of everyone's corpus."""
    found = [number for number in range(60) if split_of(f"group {number}", 0.1) == "validation"]
    assert found == [2, 5, 7, 14, 20, 38, 47]
    wider = {number for number in range(60) if split_of(f"group {number}", 0.2) == "validation"}
    assert set(found) < wider, "a larger share only adds"


def test_the_report_counts_what_is_there(
    tmp_path: Path, make_corpus: Any, run_stage: Any, rows_of: Any, shared_data: Path
) -> None:
    documents, talk = rows_of.plain(60), [rows_of.dialogue(f"What is {n}?", f"A number, {n}.") for n in range(30)]
    corpus = make_corpus(tmp_path / "corpus", documents, talk, weights={"one": 3})
    shards, report = run_stage(corpus, tmp_path, gpt2_files=shared_data / "bpe_oracle")
    used = set(shards.tokens("train").tolist()) | set(shards.dialogues("train").tokens.tolist())
    dead = [token for token, rank in shards.tokenizer.ranks.items() if len(token) > 1 and rank not in used]
    assert report.metrics["dead_tokens"] == len(dead)
    assert {row["id"] for row in report.tables["dead tokens"]} <= {shards.tokenizer.ranks[token] for token in dead}
    gpt2 = bpe.gpt2(shared_data / "bpe_oracle")
    held_out = [row["text"] for row in documents if row["split"] == "validation"]
    (row,) = report.tables["bytes per token"]
    size = sum(len(text.encode()) for text in held_out)
    assert row["compared_bytes"] == size
    assert row["gpt2_bytes_per_token"] == size / sum(len(gpt2.encode(text)) for text in held_out)
    every = [entry["text"] for entry in documents]
    own = sum(len(shards.tokenizer.encode(text)) for text in every)
    assert row["bytes_per_token"] == sum(len(text.encode()) for text in every) / own
    longest = report.tables["longest tokens"]
    assert [entry["bytes"] for entry in longest] == sorted((len(t) for t in shards.tokenizer.ranks), reverse=True)[:20]
    uses = Counter(shards.tokenizer.encode(" ".join(every[:1])))
    assert sum(uses.values()) > 0
    _, without = run_stage(corpus, tmp_path / "without", gpt2_cache=tmp_path / "none")
    assert "not at hand" in without.tables["bytes per token"][0]["gpt2"]


def test_gpt2_tokenizer_and_its_plain_template(tmp_path: Path, embedded_corpus: Any, shared_data: Path) -> None:
    config = TokenizeConfig(tokenizer="gpt2", gpt2_files=shared_data / "bpe_oracle")
    tokenize.run(config, corpus=embedded_corpus.product, out=tmp_path / "shards", scratch=tmp_path, emit=lambda _: None)
    shards = Shards.open(tmp_path / "shards")
    assert shards.vocab_size == 50257
    found = shards.dialogues("train")
    first = found.tokens[: int(found.offsets[1])].tolist()
    text = shards.tokenizer.decode(first)
    assert text.startswith("User: ")
    assert "\nAssistant: " in text
    assert text.endswith("<|endoftext|>")
    assert dialogue.stop_ids(shards.tokenizer) == {50256}


def test_a_tokenizer_made_before_is_used_for_new_data(
    tmp_path: Path, make_corpus: Any, run_stage: Any, rows_of: Any, texts_of: Any
) -> None:
    old, _ = run_stage(make_corpus(tmp_path / "old", rows_of.plain(40)), tmp_path / "a")
    corpus = make_corpus(tmp_path / "new", rows_of.plain(20, "Ελληνικά"))
    settings = {"tokenizer": "folder", "tokenizer_folder": str(old.path / "tokenizer")}
    new, _ = run_stage(corpus, tmp_path / "b", **settings)
    assert new.facts["vocabulary"] == old.facts["vocabulary"]
    assert "Ελληνικά" in texts_of(new, "train")[0]
    with pytest.raises(ValidationError, match="tokenizer_folder"):
        TokenizeConfig(tokenizer="folder")
    with pytest.raises(BadInput, match="no tokenizer here"):
        run_stage(corpus, tmp_path / "c", tokenizer="folder", tokenizer_folder=str(tmp_path))


def test_the_sample_limits_what_the_tokenizer_sees(
    tmp_path: Path, make_corpus: Any, run_stage: Any, rows_of: Any
) -> None:
    corpus = make_corpus(tmp_path / "corpus", rows_of.plain(400))
    few, _ = run_stage(corpus, tmp_path / "few", sample_bytes=1_000)
    again, _ = run_stage(corpus, tmp_path / "again", sample_bytes=1_000)
    whole, _ = run_stage(corpus, tmp_path / "whole")
    assert few.facts["vocabulary"] == again.facts["vocabulary"] != whole.facts["vocabulary"]


def test_unknown_files_and_kinds_are_bad_input(tmp_path: Path, make_corpus: Any, run_stage: Any, rows_of: Any) -> None:
    corpus = make_corpus(tmp_path / "corpus", rows_of.plain(9), [{**rows_of.dialogue("a?", "b"), "kind": "song"}])
    with pytest.raises(BadInput, match="gpt2_files"):
        run_stage(corpus, tmp_path, tokenizer="gpt2", gpt2_files=str(tmp_path))
    with pytest.raises(BadInput, match="kind 'song'"):
        run_stage(corpus, tmp_path)
    empty = make_corpus(tmp_path / "empty", [rows_of.document("only held out", split="validation")])
    with pytest.raises(BadInput, match="no documents to train on"):
        run_stage(empty, tmp_path)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("doing", ["surveying the corpus", "training the tokenizer", "encoding"])
def test_asked_to_stop_it_leaves_nothing_behind(tmp_path: Path, make_corpus: Any, rows_of: Any, doing: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", rows_of.plain(30))

    def emit(event: Any) -> None:
        if isinstance(event, Progress) and event.figures.get("doing", "encoding") == doing:
            raise Stop

    with pytest.raises(Stop):
        tokenize.run(
            TokenizeConfig(vocab_size=300, workers=1),
            corpus=corpus,
            out=tmp_path / "shards",
            scratch=tmp_path / "scratch",
            emit=emit,
        )
    assert sorted(path.name for path in tmp_path.rglob("*") if corpus not in path.parents) == ["corpus", "scratch"]


def test_template_by_role_tokens(shards: Shards) -> None:
    tokenizer: Tokenizer = shards.tokenizer
    ids, mask = dialogue.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
    assert tokenizer.decode(ids) == "<|user|>a<|end|><|assistant|>b<|end|>"
    assert mask == [0, 0, 0, 0, 1, 1]
    assert dialogue.stop_ids(tokenizer) == {tokenizer.specials["<|end|>"], tokenizer.end_id}
