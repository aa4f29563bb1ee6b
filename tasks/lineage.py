"""Where a model's knowledge came from, down to the URLs, and which models a URL, a document or a site went into.

Everything is read from MLflow and from products in the workspace or the DVC cache (`history.py`): it works for any
past run, also when its products are no longer checked out.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data import tables
from llm_core.data.forget_list import Forgotten
from llm_core.pipeline import MODELS
from tasks import tracking
from tasks.history import MAKERS, History, Made
from tasks.registry import Registry
from tasks.workspace import Workspace

ALIASES = ("champion", "previous", "candidate")
TAUGHT = ("base", "chat", "aligned", "reward")
"""Products that documents teach."""
SPOKEN = ("documents", "dialogues", "preferences")
KEPT = Path(".groundup") / "lineage"
"""Where the documents of purged corpora are written down, below the project."""
Row = dict[str, Any]


def lineage(space: Workspace, target: str) -> Row:
    """What is known of `target`: a product's name or digest, an alias of the registry, an MLflow run, an experiment,
    a URL, a site (a host name) or a document's id.

    A product gives its chain, documents and votes; a URL, site or document gives the documents and the models that saw
    them. Raises `BadInput` if nothing of that name is known.
    """
    uri = tracking.tracking_uri(space.project)
    if uri is None:
        raise BadInput("lineage is read from MLflow, and no tracking server is running; start it with `groundup up`")
    history = History(space, uri)
    made = known_product(history, space, target, uri)
    return _of_product(history, made) if made else _of_document(history, target)


def models_of(history: History, corpora: frozenset[str]) -> list[Row]:
    """Every model that was made from one of these corpora, by their digests, the oldest first."""
    found = []
    for made in history.all(TAUGHT):
        if any(one.product == "corpus" and one.digest in corpora for one in history.chain(made)):
            found.append(_told(made))
    return found


def known_product(history: History, space: Workspace, target: str, uri: str) -> Made | None:
    """The product that an alias, a product's name or digest, an experiment or a run means; None if it is none of these.

    Raises `BadInput` if it is one that MLflow knows no run of.
    """
    if target in ALIASES:
        version = Registry(uri).get(target)
        if version is None:
            raise BadInput(f"the registry has no {target}")
        return _known(history, version.digest, target)
    if target in MAKERS:
        report = space.read_report(MAKERS[target].verb)
        if report is None:
            raise BadInput(f"{space.root}: no {target} was made here yet")
        return _known(history, report["product"], target, report["run"]["build"])
    experiment = space.project / "runs" / target
    if (experiment / "params.yaml").is_file():
        report = Workspace.at(experiment).read_report("align")
        return _known(history, report["product"], target, report["run"]["build"]) if report else None
    looks_like_digest = len(target) >= 8 and all(character in "0123456789abcdef" for character in target)
    return (history.of_run(target) or history.find(target)) if looks_like_digest else None


def _known(history: History, digest: str, target: str, build: str = "") -> Made:
    made = history.find(digest, build)
    if made is None:
        raise BadInput(f"MLflow knows no run that made {target} ({digest[:12]}); `groundup sync` sends what was kept")
    return made


def _of_product(history: History, made: Made) -> Row:
    chain = history.chain(made)
    documents = list(_documents(history, chain))
    return {
        "target": _told(made),
        "chain": [_told(one) for one in chain],
        "documents": documents,
        "votes": _votes(history, chain),
        "absent": sorted(one.product for one in chain if one.product in ("raw", "corpus", "votes")
                         and history.files(one, chain) is None),
    }  # fmt: skip


def _told(made: Made) -> Row:
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made.ended / 1000)) if made.ended else None
    return {
        "product": made.product, "digest": made.digest, "run": made.run, "ended": ended, "workspace": made.workspace,
        "commit": made.commit, "code_differs": made.code_differs, "inputs": dict(made.inputs),
        "params": dict(made.params),
    }  # fmt: skip


def _table(files: Mapping[str, Path], name: str) -> list[Row]:
    import pyarrow.parquet as parquet

    names = tables.in_order(name.removesuffix(".parquet"), files)
    return [row for part in names for row in parquet.read_table(files[part]).to_pylist()]


def _documents(history: History, chain: list[Made], names: tuple[str, ...] = ("documents",)) -> Iterator[Row]:
    """Every document of the corpus in the chain, with what the crawl noted of its page; or what `names` name.

    Of a corpus that was purged, what `keep` wrote down.
    """
    found = {one.product: history.files(one, chain) for one in chain if one.product in ("raw", "corpus")}
    corpus, raw = found.get("corpus"), found.get("raw")
    if corpus is not None:
        yield from _rows(corpus, [raw or {}], names)
        return
    digest = next((one.digest for one in chain if one.product == "corpus"), "")
    kept = history.space.project / KEPT / f"{digest}.json"
    for name in names if kept.is_file() else ():
        yield from json.loads(kept.read_text())[name]


def _rows(corpus: Mapping[str, Path], raws: Iterable[Mapping[str, Path]], names: Iterable[str]) -> Iterator[Row]:
    pages: dict[tuple[str, str], Row] = {}
    for raw in raws:
        for name in sorted(raw):
            if name.endswith("/pages.parquet"):
                pages |= {(name.split("/")[0], row["url"]): row for row in _table(raw, name)}
    for row in (row for name in names for row in _table(corpus, f"{name}.parquet")):
        page = pages.get((row["source"], row["url"]), {})
        yield {
            "id": row["id"], "source": row["source"], "url": row["url"], "split": row["split"],
            "title": row.get("title"), "licence": row.get("licence") or page.get("licence"),
            "fetched": page.get("fetched"), "robots": page.get("robots"), "status": page.get("status"),
            "digest": row["digest"],
        }  # fmt: skip


def keep(
    project: Path, digest: str, corpus: Mapping[str, Path], raws: Iterable[Mapping[str, Path]], listed: Forgotten
) -> None:
    """Write down which documents a corpus had, without a word of them, so that its models keep their lineage."""
    raws = list(raws)
    rows = {name: list(_rows(corpus, raws, [name])) for name in SPOKEN}
    for row in (row for found in rows.values() for row in found):
        if listed.holds(row["url"], row["digest"], row["id"]):
            row["title"] = None
    path = project / KEPT / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_atomic(path, artifacts.dump_json(rows))


def _votes(history: History, chain: list[Made]) -> Row | None:
    """Who voted, how often, and the traces of the votes that people gave."""
    votes = next((one for one in chain if one.product == "votes"), None)
    files = history.files(votes, chain) if votes else None
    if files is None:
        return None
    rows = _table(files, "pairs.parquet")
    raters = Counter(row["rater"] for row in rows)
    traces = {row["id"].partition(":")[0] for row in rows if row["rater"] == "person"}
    return {"raters": dict(raters), "traces": sorted(traces)}


def _of_document(history: History, target: str) -> Row:
    """The documents and dialogues that `target` names, wherever they are, and every model that saw one of them."""
    seen: dict[str, dict[str, list[Row]]] = {}
    models, dropped = [], []
    for made in history.all(TAUGHT):
        chain = history.chain(made)
        corpus = next((one for one in chain if one.product == "corpus"), None)
        if corpus is None:
            continue
        if corpus.digest not in seen:
            seen[corpus.digest] = {
                kind: [row for row in _documents(history, chain, names) if _is_meant(row, target)]
                for kind, names in (("documents", ("documents",)), ("conversations", ("dialogues", "preferences")))
            }
            dropped += [row | {"corpus": corpus.digest} for row in _dropped(history, corpus, chain, target)]
        splits = sorted({row["split"] for rows in seen[corpus.digest].values() for row in rows})
        if splits:
            models.append(_told(made) | {"splits": splits, "saw": made.product in MODELS and "train" in splits})
    found = {
        kind: list({row["id"]: row for kinds in seen.values() for row in kinds[kind]}.values())
        for kind in ("documents", "conversations")
    }
    if not found["documents"] and not found["conversations"] and not dropped:
        raise BadInput(f"lineage: {target!r} is no product, alias, run, experiment, URL, site or document known here")
    return {"target": target, **found, "models": models, "dropped": dropped}


def _dropped(history: History, corpus: Made, chain: list[Made], target: str) -> list[Row]:
    files = history.files(corpus, chain) or {}
    rows = [row for row in _table(files, "dropped.parquet") if _is_meant(row, target)]
    return [{"url": row["url"], "source": row["source"], "reason": row["reason"]} for row in rows]


def _is_meant(row: Row, target: str) -> bool:
    """Whether `target` is the document's id, its URL, or the site that it is from."""
    url = row["url"] or ""
    host = urlsplit(url).hostname or ""
    return target in (row.get("id"), url, host) or host.endswith(f".{target}")
