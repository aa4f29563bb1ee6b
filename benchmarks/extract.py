"""What extraction costs and finds: `python -m benchmarks.extract [--only extraction,engines,text,isolation]`.

extraction  a page's text with its metadata beside bare trafilatura (the same call, without metadata), alternating over
            the 91 pages of article-extraction-benchmark, seven rounds: CPU seconds, F1 by the benchmark's own score
engines     each engine alone, and the parts around it: decoding, metadata, the guard against costly pages
text        characters, personal data, decontamination and language over WikiText-2: MB a CPU second of one core, and
            how much was masked where nothing should be
isolation   pages in a child process that can be ended, beside the same work in this process: CPU seconds of both

Figures go to benchmarks/results/extract.json, each part with where it was measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import trafilatura

from benchmarks.article_score import article_pages, mean_f1
from benchmarks.measuring import RESULTS, ROOT, save, where
from llm_core.data.characters import CharacterOptions, repair
from llm_core.data.decontaminate import Index
from llm_core.data.extract import ENGINES, by_engine, decode, extract, guard
from llm_core.data.filters import FilterOptions
from llm_core.data.language import language_of
from llm_core.data.metadata import metadata
from llm_core.data.pii import MaskOptions, mask
from llm_core.data.prepare import PrepareOptions, candidate
from llm_core.parallel import isolated

DATA = ROOT.parent / "shared" / "data"
PARTS = ("extraction", "engines", "text", "isolation")
ROUNDS = 7
EVALUATION_SETS = (
    "gsm8k/test.jsonl", "hellaswag/hellaswag_val.jsonl.gz", "eval_gauntlet/lambada_openai.jsonl.gz",
    "eval_gauntlet/piqa.jsonl.gz", "eval_gauntlet/arc_easy.jsonl.gz", "humaneval/HumanEval.jsonl.gz",
)  # fmt: skip


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call in this process."""
    began = time.process_time()
    call()
    return time.process_time() - began


def bare(page: bytes) -> str:
    """trafilatura as a person would call it: fast, without comments, without metadata."""
    return trafilatura.extract(page, fast=True, include_comments=False) or ""


def ours(page: bytes) -> str:
    """The same with bytes decoded, costly pages refused, and metadata."""
    document = extract(page)
    return document.text if document else ""


def extraction() -> dict[str, Any]:
    """Both over all pages, in turns; page by page, so that a busy machine hits both alike."""
    pages, truth = article_pages(DATA / "article_extraction")
    texts: dict[str, dict[str, str]] = {"ours": {}, "trafilatura": {}}
    spent: dict[str, list[float]] = {"ours": [], "trafilatura": []}
    for number in range(ROUNDS + 1):
        seconds = {"ours": 0.0, "trafilatura": 0.0}
        for place, (name, page) in enumerate(pages.items()):
            calls = [("ours", ours), ("trafilatura", bare)]
            for which, call in calls if (place + number) % 2 else reversed(calls):
                began = time.process_time()
                texts[which][name] = call(page)
                seconds[which] += time.process_time() - began
        for which, value in seconds.items():
            spent[which] += [value] if number else []  # the first round warms up
    ratios = [a / b for a, b in zip(spent["ours"], spent["trafilatura"], strict=True)]
    heads = [metadata(decode(page)) for page in pages.values()]
    return {
        "pages": len(pages),
        "mb": round(sum(map(len, pages.values())) / 1e6, 1),
        "cpu_s": {which: [round(value, 3) for value in values] for which, values in spent.items()},
        "cpu_ratio_median": round(statistics.median(ratios), 3),
        "cpu_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "f1": {which: round(mean_f1(found, truth), 4) for which, found in texts.items()},
        "share_with": {field: round(sum(getattr(head, field) is not None for head in heads) / len(heads), 2)
                       for field in ("title", "date", "language", "canonical")},
    }  # fmt: skip


def engines() -> dict[str, Any]:
    """Each engine's F1 and rate; the parts' milliseconds a page."""
    pages, truth = article_pages(DATA / "article_extraction")
    html = {name: decode(page) for name, page in pages.items()}
    size = sum(map(len, pages.values())) / 1e6
    found: dict[str, Any] = {}
    for engine in ENGINES:
        texts: dict[str, str] = {}
        spent = [cpu_seconds(lambda engine=engine, texts=texts: texts.update(_texts(html, engine))) for _ in range(3)]
        found[engine] = {"f1": round(mean_f1(texts, truth), 4), "mb_per_cpu_s": round(size / min(spent), 1)}
    parts: dict[str, tuple[Callable[[Any], object], Iterable[Any]]] = {
        "decode": (decode, pages.values()), "metadata": (metadata, html.values()), "guard": (guard, html.values())
    }  # fmt: skip
    for name, (call, items) in parts.items():
        spent = [cpu_seconds(lambda call=call, items=items: [call(item) for item in items]) for _ in range(3)]
        found[name] = {"ms_per_page": round(1_000 * min(spent) / len(pages), 3)}
    return found


def _texts(html: dict[str, str], engine: str) -> dict[str, str]:
    return {name: by_engine(page, engine) for name, page in html.items()}


def text() -> dict[str, Any]:
    """Rates on clean prose, in documents of 5,000 characters; least of five rounds."""
    plain = (DATA / "wikitext2" / "train.txt").read_text()
    plain = plain.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
    documents = [repair(plain[start : start + 5_000]) for start in range(0, len(plain), 5_000)]
    size = sum(len(document.encode()) for document in documents) / 1e6
    index = Index.build([DATA / name for name in EVALUATION_SETS])
    batches = [documents[start : start + 64] for start in range(0, len(documents), 64)]
    masks = sum(sum(mask(document, MaskOptions())[1].values()) for document in documents)
    calls: dict[str, Callable[[], object]] = {
        "characters": lambda: [repair(document) for document in documents],
        "characters_unchanged": lambda: [repair(document, CharacterOptions("keep")) for document in documents],
        "personal_data": lambda: [mask(document, MaskOptions()) for document in documents],
        "decontamination": lambda: [index.hits_of(batch) for batch in batches],
    }
    rates = {name: round(size / min(cpu_seconds(call) for _ in range(5)), 1) for name, call in calls.items()}
    language_of(documents[0])  # loads its model
    language = cpu_seconds(lambda: [language_of(document) for document in documents[:200]]) / 200
    return {
        "mb": round(size, 1),
        "mb_per_cpu_s": rates,
        "language_ms_per_document": round(1_000 * language, 3),
        "evaluation_pieces": len(index),
        "masked_in_wikitext": masks,
    }


def isolation() -> dict[str, Any]:
    """Short texts, where the way to the child and back weighs most, and pages."""
    pages, _ = article_pages(DATA / "article_extraction")
    plain = (DATA / "wikitext2" / "valid.txt").read_text()
    options = PrepareOptions(rules=ROOT / "rules", filters=FilterOptions())
    rows = {
        "texts": [(plain[start : start + 5_000], "text/plain") for start in range(0, len(plain), 5_000)],
        "pages": [(decode(page), "text/html") for page in pages.values()],
    }
    found = {}
    for kind, contents in rows.items():
        items = [({"url": "", "text": body, "content_type": what}, None, options) for body, what in contents]
        spent: dict[str, list[float]] = {"child": [], "here": []}
        for number in range(6):
            a = _with_children(lambda items=items: isolated(candidate, items, seconds=60.0, failed=_failed))
            b = cpu_seconds(lambda items=items: [candidate(item) for item in items])
            spent["child"] += [a] if number else []  # the first time it starts
            spent["here"] += [b] if number else []
        ratio = statistics.median(a / b for a, b in zip(spent["child"], spent["here"], strict=True))
        found[kind] = {
            "cpu_ratio_median": round(ratio, 3),
            "cpu_s": {k: [round(x, 3) for x in v] for k, v in spent.items()},
        }
    return found


def _failed(item: object, reason: str) -> Any:
    raise RuntimeError(f"{reason}: {str(item)[:80]}")


def _with_children(call: Callable[[], object]) -> float:
    """CPU seconds of a call in this process and its children."""

    def spent() -> float:
        process = psutil.Process()
        times = [each.cpu_times() for each in (process, *process.children())]
        return sum(each.user + each.system for each in times)

    before = spent()
    call()
    return spent() - before


def main(names: Sequence[str] | None = None) -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args(names)
    wanted = arguments.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    if not DATA.is_dir():
        parser.error(f"no reference data at {DATA}")
    measures = {"extraction": extraction, "engines": engines, "text": text, "isolation": isolation}
    for name in wanted:
        figures = {"where": where(), **measures[name]()}
        print(name, {key: value for key, value in figures.items() if key != "where"}, flush=True)
        print(save("extract", {name: figures}, arguments.results))


if __name__ == "__main__":
    main()
