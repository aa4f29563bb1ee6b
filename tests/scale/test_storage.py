"""A build whose workers see an S3 store and nothing of our folders: the bytes of one process, whatever happens."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data import acquire, clean, tokenize
from llm_core.data.document import RAW_DIALOGUES, RAW_DOCUMENTS
from llm_core.data.shards import Shards
from llm_core.data.tables import on_disk
from llm_core.data.web.store import PAGES
from llm_core.settings.acquire import AcquireConfig
from llm_core.settings.clean import CleanConfig, FilterSettings, SourceSettings
from llm_core.settings.cluster import ClusterSettings
from llm_core.settings.storage import StorageSettings
from llm_core.settings.tokenize import TokenizeConfig
from llm_core.storage import places, products
from llm_core.storage.places import Place

pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

URL = "s3://bucket/groundup"
LOOSE = SourceSettings(filters=FilterSettings(min_words=5, gopher_quality=False, gopher_repetition=False))
WORDS = [
    f"{a}{b}" for a in ("ri", "ka", "so", "ten", "mu", "ver", "lo") for b in ("ver", "ton", "la", "mik", "dor", "es")
]


def prose(number: int, words: int = 500) -> str:
    rng = random.Random(number)
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


def page(number: int) -> bytes:
    head = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
    paragraphs = f"<p>{prose(1000 + number)}</p><p>{prose(2000 + number // 5, 60)}</p>"
    body = f"<html><head><title>{number}</title></head><body><main>{paragraphs}</main></body></html>".encode()
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=False)
    fixed = {"WARC-Date": "2026-01-01T00:00:00Z", "WARC-Record-ID": f"<urn:uuid:{number:032x}>"}
    record = writer.create_warc_record(
        f"https://w.example/{number}", "response", payload=io.BytesIO(body), http_headers=head, warc_headers_dict=fixed
    )
    writer.write_record(record)
    return gzip.compress(buffer.getvalue(), mtime=0)


def fill_raw(folder: Path) -> None:
    """Documents, dialogues, and pages in two WARC segments, some of whose records are not listed."""
    rows = [{"url": f"https://a.example/{n}", "text": prose(n % 180), "content_type": "text/plain"} for n in range(200)]
    talk = [
        {
            "url": f"u{n}", "group": str(n), "kind": "dialogue", "check": None,
            "messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": prose(n, 20)}],
        }
        for n in range(60)
    ]  # fmt: skip
    (folder / "a").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, RAW_DOCUMENTS), folder / "a" / "documents.parquet", row_group_size=20)
    pq.write_table(pa.Table.from_pylist(talk, RAW_DIALOGUES), folder / "a" / "dialogues.parquet", row_group_size=20)
    (folder / "w" / "warc").mkdir(parents=True)
    listed = []
    for segment in ("00000.warc.gz", "00001.warc.gz"):
        with open(folder / "w" / "warc" / segment, "wb") as file:
            for number in range(20):
                place = file.tell()
                file.write(page(number + (20 if segment.startswith("00001") else 0)))
                if number % 7:
                    known = {"url": f"https://w.example/{segment[4]}{number:02d}", "segment": segment, "offset": place}
                    listed.append(known | {"content_type": "text/html", "bytes": 4_000, "status": 200, "digest": "ab"})
    pq.write_table(pa.Table.from_pylist(listed, PAGES), folder / "w" / "pages.parquet", row_group_size=16)


def build(folder: Path, cluster: str | None, url: str | None) -> dict[str, str]:
    """raw, corpus and shards in a folder; their digests."""
    where = ClusterSettings(kind="dask", address=cluster) if cluster else ClusterSettings()
    how = {"workers": 1, "cluster": where, "storage": StorageSettings(url=url)}
    for name in ("rules", "lists", "heldout", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "heldout" / "set.txt").write_text(" ".join(prose(17).split()[20:50]) + "\n")
    (folder / "rules" / "w.example.yaml").write_text("content: [main]\ntitle: title\n")
    sources = {name: {"kind": "files", "licence": "MIT", "weight": 1.5} for name in ("a", "w")}
    facts = {"sources": sources}
    with products.new_product(folder / "raw", "raw", facts, partial=folder / "partial", url=url) as making:
        fill_raw(making.folder)
    settings = {"a": LOOSE, "w": LOOSE.model_copy(update={"drop_repeated_paragraphs": True})}
    inputs = {name: folder / name for name in ("raw", "rules", "lists", "heldout", "scratch")}
    clean.run(CleanConfig(sources=settings, **how), out=folder / "corpus", emit=lambda _: None, **inputs)
    tokenize.run(
        TokenizeConfig(vocab_size=320, **how), corpus=folder / "corpus", out=folder / "shards",
        scratch=folder / "scratch", emit=lambda _: None,
    )  # fmt: skip
    return {name: artifacts.digest(folder / name) for name in ("raw", "corpus", "shards")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The build of one process on folders."""
    folder = tmp_path_factory.mktemp("alone")
    digests = build(folder, None, None)
    facts = artifacts.read_manifest(folder / "corpus")["facts"]
    assert facts["repeated_paragraphs"] > 10, "the data is what it should be"
    assert facts["contamination"] == {"set.txt": 2}
    return folder, digests


def test_workers_that_see_only_the_store_make_the_same_bytes_though_three_are_killed(
    s3, dask_elsewhere, alone, tmp_path: Path
) -> None:
    import s3server

    _, expected = alone
    here, seed = tmp_path / "here", random.SystemRandom().randrange(2**32)
    moments = sorted(random.Random(seed).sample(range(20, 180), 3))

    s3.faults = s3server.Faults(errors=2, busy=1, slow=3, seconds=0.3)
    s3.due = [(s3.count + moment, dask_elsewhere.replace_worker) for moment in moments]
    assert build(here, dask_elsewhere.address, URL) == expected, f"seed {seed}"
    assert not s3.due, f"three workers were killed (seed {seed}, {s3.count} requests)"
    assert all(s3.injected[kind] for kind in ("errors", "busy", "slow"))
    s3.faults = s3server.Faults()
    store = Place(URL)
    assert not [name for name in store.sizes() if name.startswith("scratch/")], "nothing is left lying"
    for name in expected:
        assert sorted(path.name for path in (here / name).iterdir()) == ["manifest.json", "store.json"]
        products.verify(here / name)
        copy = products.local(here / name)
        artifacts.verify(copy)
    made = sum(blob.size for name in ("corpus", "shards") for blob in products.blobs(here / name).values())
    assert s3.moved["worker"] > made, "workers read and wrote the store themselves"
    for path in [*(here / "corpus").iterdir(), *(here / "scratch").rglob("*.json")]:
        assert b"hushhush" not in path.read_bytes()
    opened = Shards.open(here / "shards")
    assert opened.path.parent == tmp_path / "copies"


def test_one_process_with_a_store_makes_the_same_bytes_and_versions_share_files(s3, alone, tmp_path: Path) -> None:
    _, expected = alone
    assert build(tmp_path / "one", None, URL) == expected
    before = Place(URL).sizes()
    assert build(tmp_path / "two", None, URL) == expected
    assert Place(URL).sizes() == before, "the same product adds nothing"


def half(folder: Path, url: str) -> Path:
    """A small product in a store."""
    with products.new_product(folder / "corpus", "corpus", {}, partial=folder / "partial", url=url) as making:
        name, entry = making.output.put("large.bin", lambda path: path.write_bytes(b"large" * 1000) and None)
        making.add(name, entry)
        (making.folder / "sub").mkdir()
        (making.folder / "sub" / "small.txt").write_text("small")
    return folder / "corpus"


@pytest.mark.parametrize("scheme", ["s3", "file", "memory"])
def test_any_store_will_do(s3, tmp_path: Path, scheme: str) -> None:
    url = {"s3": URL, "file": f"file://{tmp_path}/store", "memory": "memory://some/where"}[scheme]
    product = half(tmp_path, url)
    products.verify(product)
    assert (products.local(product, ["sub/small.txt"]) / "sub" / "small.txt").read_text() == "small"
    wanted = [("q", 5, 3), ("q", 0, 2), ("r", 1, 1), ("q", 700_000, 5)]
    place = Place(f"{url}/ranges")
    data = random.Random(1).randbytes(800_000)
    place.write("q", data)
    place.write("r", b"abc")
    assert place.ranges(wanted) == [data[5:8], data[:2], b"b", data[700_000:700_005]]
    place.clear()
    assert place.sizes() == {}


def test_what_is_not_published_or_not_whole_is_refused(s3, tmp_path: Path) -> None:
    product = half(tmp_path, URL)
    large = products.blobs(product)["large.bin"]
    Place(URL).write(large.key, b"other" * 1000)
    with pytest.raises(artifacts.BrokenProduct, match="its bytes differ from the manifest"):
        products.local(product)
    Place(URL).write(large.key, b"other")
    with pytest.raises(artifacts.BrokenProduct, match=r"of 5 bytes, though the manifest lists large.bin of 5000"):
        products.verify(product)
    Place(URL).remove([large.key])
    with pytest.raises(artifacts.BrokenProduct, match=r"missing, though the manifest lists large.bin"):
        products.verify(product)
    Place(URL).remove([products.manifest_key(artifacts.digest(product))])
    with pytest.raises(artifacts.BrokenProduct, match=r"s3://bucket/groundup has no whole product .*run the stage"):
        products.blobs(product)
    (product / "store.json").write_text("{}")
    with pytest.raises(artifacts.BrokenProduct, match="names no store"):
        products.verify(product)


def test_the_manifest_comes_last(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(products.Making, "publish", killed)
    url = f"{URL}-unfinished"  # other tests leave their files behind
    with pytest.raises(KeyboardInterrupt):
        half(tmp_path, url)
    assert not (tmp_path / "corpus").exists()
    names = list(Place(url).sizes())
    assert len([name for name in names if name.startswith("files/")]) == 2
    assert not [name for name in names if name.startswith("manifests/")]


def test_bad_stores_are_told_in_one_sentence(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3server

    with pytest.raises(BadInput, match=r"s3://absent/x/README.txt: there is no bucket 'absent'"):
        products.begin("s3://absent/x")
    with pytest.raises(BadInput, match=r"nothing is known of foo://"):
        products.begin("foo://absent/x")
    with pytest.raises(BadInput, match=r"gs:// needs a package that is not installed"):
        products.begin("gs://bucket/x")
    monkeypatch.setattr(places, "ATTEMPTS", 3)
    places.filesystem.cache_clear()
    s3.faults = s3server.Faults(errors=100)
    before = s3.count
    with pytest.raises(places.StoreFailed, match="does not answer as it should"):
        Place(URL).read("x")
    assert 3 <= s3.count - before <= 12, "tried again, and not for ever"
    s3.faults = s3server.Faults()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    places.filesystem.cache_clear()
    with pytest.raises(BadInput, match="no credentials for it; they are taken from the environment") as told:
        products.begin(URL)
    assert "hushhush" not in str(told.value)


@pytest.mark.parametrize(
    "url",
    ["s3://key:hushhush@bucket/x", "s3://bucket/x?secret=hushhush", "https://bucket/x", "bucket/x", "s3://bucket/"],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"url"):
        StorageSettings(url=url)


def test_files_of_a_store_are_a_source(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": prose(n, 30), "url": f"u{n}"}) for n in range(40)]
    for number in range(2):
        data = gzip.compress("\n".join(lines[number * 20 :][:20]).encode(), mtime=0)
        for place in (Place("s3://bucket/in"), Place("in")):
            place.write(f"deep/{number}.jsonl.gz", data)
    Place("s3://bucket/in").write("notes.md", b"# A note")

    def gathered(name: str, *paths: str) -> Path:
        source = {"kind": "files", "name": "a", "paths": paths, "columns": {"url": "url"}}
        config = AcquireConfig(sources=(source,), storage=StorageSettings(url=URL))
        (tmp_path / name).mkdir()
        acquire.run(config, out=tmp_path / name / "raw", scratch=tmp_path / name, emit=lambda _: None)
        return on_disk(tmp_path / name / "raw", "a/documents")[0]

    there = pq.read_table(gathered("there", "s3://bucket/in/**/*.jsonl.gz"))
    assert there == pq.read_table(gathered("here", "in/deep"))
    assert there.num_rows == 40
    (note,) = pq.read_table(gathered("one", "s3://bucket/in/notes.md")).to_pylist()
    assert (note["url"], note["title"], note["text"]) == ("s3://bucket/in/notes.md", "notes", "# A note")
    with pytest.raises(BadInput, match=r"'s3://bucket/none/' matches no file"):
        gathered("none", "s3://bucket/none/")
    with pytest.raises(ValueError, match="kind web"):
        gathered("web", "https://example.org/x.txt")
    with pytest.raises(ValueError, match="do not belong into the URL") as told:
        gathered("secret", "s3://me:hushhush@bucket/x")
    assert "environment" in str(told.value)
