"""What was ever made: products found by their digest in MLflow, and their files in the workspace or the DVC cache.

A product's digest names it for good: every run of a stage is tagged with the digest of what it made, and lists those
of what it read. So any past model leads back to its data, also when no workspace holds either any longer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from llm_core import artifacts
from llm_core.pipeline import PIPELINE, product_path
from llm_core.storage import products
from tasks import tracking
from tasks.workspace import Workspace

MAKERS = {row.makes: row for row in PIPELINE}


@dataclass(frozen=True)
class Made:
    """One product as a run made it. `inputs` are digests of the products and files it read, by name."""

    product: str
    digest: str
    run: str
    ended: int | None
    build: str
    workspace: str
    commit: str
    code_differs: bool
    params: Mapping[str, str]
    inputs: Mapping[str, str]

    @property
    def needs(self) -> dict[str, str]:
        """Digests of the products it read, by name."""
        return {name: self.inputs[name] for name in MAKERS[self.product].needs if name in self.inputs}


class History:
    """Reads MLflow and the DVC cache; raises what MLflow raises."""

    def __init__(self, space: Workspace, uri: str) -> None:
        self.space, self.client = space, tracking.client(uri)

    @cached_property
    def experiments(self) -> dict[str, str]:
        """Number of the MLflow experiment of each stage, by the name of its product."""
        found = {entry.name: entry.experiment_id for entry in self.client.search_experiments(max_results=1000)}
        names = {row.makes: tracking.EXPERIMENT.format(row.verb) for row in PIPELINE}
        return {product: found[name] for product, name in names.items() if name in found}

    def find(self, digest: str, build: str = "") -> Made | None:
        """The product whose digest begins with these characters, as a run of this build made it, else the first run.

        Different pages can give the same corpus, so runs that made the same product may have read others.
        """
        return self._first(f"tags.product LIKE '{digest}%'", build) if digest.isalnum() else None

    def of_run(self, run: str) -> Made | None:
        """What the MLflow run of this number made."""
        return self._first(f"attributes.run_id = '{run}'") if run.isalnum() else None

    def all(self, products: tuple[str, ...]) -> list[Made]:
        """Every product of these kinds, the oldest first; one that was made twice stands once."""
        found: dict[str, Made] = {}
        for product in products:
            for run in self._search("attributes.status = 'FINISHED'", [product], 50_000):
                made = self._made(run)
                if made is not None:
                    found.setdefault(made.digest, made)
        return list(found.values())

    def chain(self, made: Made) -> list[Made]:
        """`made` and everything that went into it, in the order of the stages; what no run is known of is left out."""
        found: dict[str, Made] = {}
        waiting = [made]
        while waiting:
            one = waiting.pop()
            if one.digest not in found:
                found[one.digest] = one
                waiting += [known for digest in one.needs.values() if (known := self._known(digest, one.build))]
        order = [row.makes for row in PIPELINE]
        return sorted(found.values(), key=lambda one: (order.index(one.product), one.digest))

    @lru_cache(maxsize=1024)  # noqa: B019 - a History lives as long as one command
    def _known(self, digest: str, build: str) -> Made | None:
        return self.find(digest, build)

    def _first(self, question: str, build: str = "") -> Made | None:
        runs = self._search(question, list(self.experiments), 100)
        runs.sort(key=lambda run: run.data.tags.get("build") != build)  # stable: else the oldest stays first
        return self._made(runs[0]) if runs else None

    def _search(self, question: str, products: list[str], most: int) -> list[Any]:
        numbers = [self.experiments[product] for product in products if product in self.experiments]
        if not numbers:
            return []
        found: list[Any] = []
        token = None
        while len(found) < most:
            page = self.client.search_runs(
                numbers, question, max_results=min(most, 1000), order_by=["attributes.start_time"], page_token=token
            )
            found += list(page)
            token = page.token
            if not token:
                break
        return found

    def _made(self, run: Any) -> Made | None:
        tags = run.data.tags
        product = next((name for name, number in self.experiments.items() if number == run.info.experiment_id), None)
        if product is None or "product" not in tags:
            return None
        inputs = {
            entry.dataset.name: str(json.loads(entry.dataset.source)["sha256"]) for entry in run.inputs.dataset_inputs
        }
        return Made(
            product, tags["product"], run.info.run_id, run.info.end_time, tags.get("build", ""),
            tags.get("workspace", ""), tags.get("git_commit", ""), tags.get("code_differs_from_commit") == "true",
            dict(run.data.params), inputs,
        )  # fmt: skip

    def files(self, made: Made, chain: list[Made]) -> dict[str, Path] | None:
        """The product's files by relative name, from the workspace, else from the DVC cache; None if neither has it.

        DVC knows them by the dvc.lock that each run of `chain` kept.
        """
        here = self.space.product(made.product)
        if (here / artifacts.MANIFEST).is_file() and artifacts.digest(here) == made.digest:
            return products.laid_open({p.relative_to(here).as_posix(): p for p in here.rglob("*") if p.is_file()})
        for one in chain:
            for address in self._addresses(one.run, made.product):
                files = cached(self.cache, address)
                if files and artifacts.sha256(files[artifacts.MANIFEST]) == made.digest:
                    return products.laid_open(files)
        return None

    @cached_property
    def cache(self) -> Path:
        """Where DVC keeps its objects."""
        return cache_of(self.space)

    @lru_cache(maxsize=256)  # noqa: B019 - a History lives as long as one command
    def _lock(self, run: str) -> dict[str, Any]:
        if not any(entry.path == "dvc.lock" for entry in self.client.list_artifacts(run)):
            return {}
        with tempfile.TemporaryDirectory() as folder:
            text = Path(self.client.download_artifacts(run, "dvc.lock", folder)).read_text()
        content: dict[str, Any] = yaml.safe_load(text) or {}
        return content

    def _addresses(self, run: str, product: str) -> set[str]:
        """What dvc.lock says of the product at the time of a run: as a stage's output, or as what one read."""
        stages = self._lock(run).get("stages", {}).values()
        entries = [entry for stage in stages for entry in [*stage.get("outs", []), *stage.get("deps", [])]]
        return {entry["md5"] for entry in entries if entry["path"] == product_path(product) and "md5" in entry}


def cache_of(space: Workspace) -> Path:
    """Where DVC keeps the objects of a workspace."""
    from dvc.repo import Repo

    with Repo(str(space.root)) as repo:
        return Path(repo.cache.local.path)


def cached(cache: Path, address: str) -> dict[str, Path]:
    """Files of a cached product by relative name; empty if it, or one of them, is not there."""
    listing = _object(cache, address)
    if not listing.is_file():
        return {}
    files = {entry["relpath"]: _object(cache, entry["md5"]) for entry in json.loads(listing.read_text())}
    return files if artifacts.MANIFEST in files and all(path.is_file() for path in files.values()) else {}


def _object(cache: Path, address: str) -> Path:
    return cache / address[:2] / address[2:]
