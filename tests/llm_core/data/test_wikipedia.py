"""A dump in MediaWiki's own export schema, and the plain version through a local folder."""

from __future__ import annotations

import bz2
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core.artifacts import read_manifest
from llm_core.contract import BadInput, Report
from llm_core.data import acquire
from llm_core.data.sources import parts
from llm_core.data.sources.wikipedia import Dump, plain
from llm_core.settings.acquire import AcquireConfig, WikipediaSource

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.mediawiki.org/xml/export-0.11/ http://www.mediawiki.org/xml/export-0.11.xsd"
 version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>dewiki</dbname>
    <base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
    <generator>MediaWiki 1.43.0</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="-2" case="first-letter">Medium</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
ARTICLE = """{{Infobox Insekt|Name=Biene}}
[[Datei:Biene.jpg|mini|Eine [[Biene]] im Bild]]
Die '''Honigbiene''' ist ein [[Insekt|geflügeltes Insekt]].<ref name="a">Ein Buch</ref> __NOTOC__

== Lebensraum ==
* Sie lebt in [[Europa]] &amp; Asien.<ref />
{| class="wikitable"
! Jahr !! Völker
|-
| 1990 || 12
|}
<!-- niemand sieht das -->
[[Kategorie:Biene]]
"""


def page(number: int, title: str, text: str, ns: int = 0, redirect: str | None = None) -> str:
    goal = f'\n    <redirect title="{escape(redirect)}" />' if redirect else ""
    return f"""  <page>
    <title>{escape(title)}</title>
    <ns>{ns}</ns>
    <id>{number}</id>{goal}
    <revision>
      <id>{number}000</id>
      <parentid>{number}</parentid>
      <timestamp>2023-11-01T00:00:00Z</timestamp>
      <contributor><username>Someone</username><id>7</id></contributor>
      <model>wikitext</model>
      <format>text/x-wiki</format>
      <text bytes="{len(text.encode())}" sha1="x" xml:space="preserve">{escape(text)}</text>
      <sha1>x</sha1>
    </revision>
  </page>
"""


def write_dump(path: Path, pages: list[str]) -> Path:
    """As the multistream dumps: the head, every two pages and the end are bz2 streams of their own."""
    streams = [HEAD, *("".join(pages[i : i + 2]) for i in range(0, len(pages), 2)), "</mediawiki>\n"]
    path.write_bytes(b"".join(bz2.compress(stream.encode()) for stream in streams))
    return path


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    pages = [
        page(1, "Honigbiene", ARTICLE),
        page(2, "Diskussion:Honigbiene", "Was meint ihr?", ns=1),
        page(3, "Biene", "#WEITERLEITUNG [[Honigbiene]]", redirect="Honigbiene"),
        page(4, "Fehler? & Größe", "Ein Satz mit <nowiki>[[Klammern]]</nowiki> und ''Betonung''."),
        page(5, "Leer", "{{Vorlage}}"),
        *(page(n, f"Artikel {n}", f"Der Artikel {n} ist kurz.") for n in range(6, 30)),
    ]
    return write_dump(tmp_path / "dewiki-20231101-pages-articles-multistream.xml.bz2", pages)


def acquired(tmp_path: Path, name: str = "raw", **settings: Any) -> tuple[list[dict[str, Any]], Report]:
    values = {"kind": "wikipedia", "name": "wiki", "workers": 1, **settings}
    config = AcquireConfig(sources=(WikipediaSource.model_validate(values),), store=tmp_path / "store")
    report = acquire.run(config, out=tmp_path / name, scratch=tmp_path / "scratch", emit=lambda _: None)
    return pq.read_table(tmp_path / name / "wiki" / "documents.parquet").to_pylist(), report


def test_articles_alone_as_plain_text(tmp_path: Path, dump: Path) -> None:
    rows, report = acquired(tmp_path, dump=str(dump), language="de")
    assert [row["title"] for row in rows[:2]] == ["Honigbiene", "Fehler? & Größe"]
    assert len(rows) == 26
    assert rows[0]["text"] == "Die Honigbiene ist ein geflügeltes Insekt.\n\nLebensraum\nSie lebt in Europa & Asien."
    assert rows[1]["text"] == "Ein Satz mit [[Klammern]] und Betonung."
    assert rows[1]["url"] == "https://de.wikipedia.org/wiki/Fehler%3F_%26_Gr%C3%B6%C3%9Fe"
    assert {row["licence"] for row in rows} == {"CC-BY-SA-4.0"}
    counts = report.tables["sources"][0]
    assert [counts[f"skipped {reason}"] for reason in ("other namespace", "redirect", "no text")] == [1, 1, 1]
    assert read_manifest(tmp_path / "raw", "raw")["facts"]["sources"]["wiki"]["dump"] == dump.name


def test_a_cut_dump_is_named_with_its_last_page_and_gone_on_with_when_mended(tmp_path: Path, dump: Path) -> None:
    data = dump.read_bytes()
    dump.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"multistream.xml.bz2, after page \d+: the dump cannot be read further"):
        acquired(tmp_path, dump=str(dump), language="de")
    assert not (tmp_path / "raw").exists()
    dump.write_bytes(data)
    assert len(acquired(tmp_path, dump=str(dump), language="de")[0]) == 26


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5, 20])
def test_killed_and_gone_on_the_bytes_are_the_same(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr("llm_core.data.sources.rows.BATCH_ROWS", 1)
    monkeypatch.setattr("llm_core.data.sources.wikipedia.BATCH_PAGES", 3)
    rows, _ = acquired(tmp_path / "whole", dump=str(dump), language="de")
    write = parts.Parts.write

    def tiring(self: Any, what: str, stream: Any, source: Any, licence: Any, tell: Any) -> None:
        def told(count: int) -> None:
            if count == stop_at:
                raise KeyboardInterrupt

        write(self, what, stream, source, licence, told)

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", tiring)
        with pytest.raises(KeyboardInterrupt):
            acquired(tmp_path, dump=str(dump), language="de")
    assert acquired(tmp_path, dump=str(dump), language="de")[0] == rows
    assert (tmp_path / "raw" / "manifest.json").read_bytes() == (tmp_path / "whole/raw/manifest.json").read_bytes()


def test_two_processes_give_the_same(tmp_path: Path, dump: Path) -> None:
    one = acquired(tmp_path, "one", dump=str(dump), language="de")[0]
    assert acquired(tmp_path / "b", "two", dump=str(dump), language="de", workers=2)[0] == one


def test_memory_is_flat_however_long_the_dump(tmp_path: Path) -> None:
    """What a child's peak grows by while it reads 24 MB of pages: what a page leaves behind is freed."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read the peak from")
    text = "Ein Satz, der sich wiederholt. " * 400
    path = write_dump(tmp_path / "long.bz2", [page(n, f"A {n}", text) for n in range(2_000)])
    program = (
        "import sys; from pathlib import Path; from llm_core.data.sources.wikipedia import Dump\n"
        "def peak(): return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "dump, before = Dump(Path(sys.argv[1]), 'de'), peak()\n"
        "print(sum(1 for _ in dump.articles()), dump.fault, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    read, fault, kilobytes = done.stdout.split()
    assert (read, fault) == ("2000", "None")
    assert int(kilobytes) < 8_000


def test_the_plain_version_by_default(tmp_path: Path) -> None:
    """The hub's own layout, wikimedia/wikipedia: a configuration a language, Parquet files in its folder."""
    folder = tmp_path / "wikipedia"
    (folder / "20231101.simple").mkdir(parents=True)
    table = pa.table({"id": ["1", "2"], "url": ["https://simple.wikipedia.org/wiki/A", "https://simple.wikipedia.org/wiki/B"],
                      "title": ["A", "B"], "text": ["The letter A.", "The letter B."]})  # fmt: skip
    pq.write_table(table, folder / "20231101.simple" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nlicense: [cc-by-sa-3.0, gfdl]\nconfigs:\n- config_name: 20231101.simple\n  data_files:\n"
        "  - split: train\n    path: 20231101.simple/train-*\n---\n# Wikipedia\n"
    )
    rows, _ = acquired(tmp_path, path=str(folder), language="simple")
    assert [(row["title"], row["url"][-1], row["text"]) for row in rows] == [
        ("A", "A", "The letter A."),
        ("B", "B", "The letter B."),
    ]
    with pytest.raises(BadInput, match=r"20231101\.fr"):
        acquired(tmp_path, "fr", path=str(folder), language="fr")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'wiki': dump: no file at"):
        acquired(tmp_path, dump=str(tmp_path / "nowhere.bz2"))
    with pytest.raises(BadInput, match="'wiki': 'wikimedia/wikipedia' is no local folder"):
        acquired(tmp_path)


def test_entities_of_a_hostile_dump_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    text = (
        f'<!DOCTYPE m [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>' + HEAD + page(1, "A", "B").replace("B<", "&x;<")
    )
    path = tmp_path / "x.bz2"
    path.write_bytes(bz2.compress((text + "</mediawiki>").encode()))
    assert "secret" not in "".join(article.wikitext for article in Dump(path, "de").articles())


def test_plain_text_of_odd_wiki_text() -> None:
    for odd in ("", "[[", "{{" * 200, "<ref>", "{|\n|-\n", "[[File:", "'''", "== ==", "<table>" * 50):
        assert isinstance(plain(odd), str)
