"""The picture of a lineage: a box a product, an arc for what went into it, and nothing that a page could plant."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from apps.lineage import graph

SVG = "{http://www.w3.org/2000/svg}"


def link(product: str, verb: str, **inputs: bool) -> dict[str, Any]:
    parts = [{"name": name, "digest": "d" * 64, "is_product": True, "earlier": earlier}
             for name, earlier in inputs.items()]  # fmt: skip
    parts.append({"name": "rules", "digest": "e" * 64, "is_product": False, "earlier": False})
    return {"product": product, "digest": product * 9, "verb": verb, "inputs": parts}


def test_every_product_has_a_box_and_every_input_an_arc() -> None:
    chain = [link("base", "pretrain", shards=True), link("shards", "tokenize", corpus=False),
             link("corpus", "clean", raw=False), link("raw", "acquire")]  # fmt: skip
    sources = [{"source": "site", "licence": "MIT", "pages": 1200.0}, {"source": "mine", "licence": None}]
    tree = ElementTree.fromstring(graph(chain, sources))
    texts = ["".join(text.itertext()) for text in tree.iter(f"{SVG}text")]
    assert texts[0] == "source siteMIT, 1,200 pages"
    assert texts[1] == "source mineno licence"
    assert [text.split(" by ")[1] for text in texts[2:]] == ["acquire", "clean", "tokenize", "pretrain"]
    assert [link.get("href") for link in tree.iter(f"{SVG}a")] == [
        "#product-raw",
        "#product-corpus",
        "#product-shards",
        "#product-base",
    ]
    arcs = [path for path in tree.iter(f"{SVG}path") if path.get("fill") == "none"]
    assert len(arcs) == 5
    assert [arc.get("stroke-dasharray") is not None for arc in arcs] == [False, False, True, False, False]
    assert "site went into raw" in (tree.get("aria-label") or "")


def test_words_of_a_source_stay_words() -> None:
    evil = '"><script>alert(1)</script>'
    picture = graph([link("raw", evil)], [{"source": evil, "licence": evil}])
    tree = ElementTree.fromstring(picture)
    assert not list(tree.iter(f"{SVG}script"))
    assert "<script" not in picture


def test_a_run_without_reports_has_an_empty_picture() -> None:
    assert not list(ElementTree.fromstring(graph([], [])))
