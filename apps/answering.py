"""The models behind the voting page: found by alias or folder, loaded when the first prompt comes, asked for an answer.

torch, mlflow and the models themselves are loaded on first use only: a page that nobody visits stays small.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.contract import BadInput
from tasks import tracking
from tasks.exchanges import Shown

ALIASES = ("champion", "candidate", "previous")
ANY = "any"
LOADED_AT_MOST = 3
"""Models kept in memory; the one that was asked longest ago makes room."""


@dataclass(frozen=True)
class Draw:
    """How answers are sampled; `temperature` 0 takes the likeliest token, so that two samples would be equal."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64


@dataclass(frozen=True)
class _Model:
    digest: str
    network: Any
    tokenizer: Any


class Models:
    """The models that may answer: aliases of the registry, or folders. Safe to ask from several threads."""

    def __init__(self, project: Path, names: Sequence[str] = ()) -> None:
        """`names` are aliases or model folders (relative to the project); without them the registry's aliases."""
        self.project = project
        self.names = tuple(dict.fromkeys(names)) or ALIASES
        self.chosen = bool(names)
        for name in self.names:
            if name not in ALIASES and not (project / name / "config.json").is_file():
                raise BadInput(f"--model {name}: neither one of {', '.join(ALIASES)} nor a model's folder")
        self._found: dict[str, tuple[str, Path]] = {}
        self._loaded: OrderedDict[str, _Model] = OrderedDict()
        self._lock = threading.Lock()

    def pair(self, first: str = ANY, second: str = ANY) -> tuple[str, str]:
        """Two names of models in the order in which they stand on the page; both may be the same.

        `any` is a model drawn from those that there are; the sides are drawn too. Raises `BadInput`.
        """
        for name in (first, second):
            if name != ANY and name not in self.names:
                raise BadInput(f"no model {name!r} here; the models are {', '.join(self.names)}")
        with self._lock:
            there = self._there() if ANY in (first, second) else []
        draw = random.SystemRandom()
        names = [name if name != ANY else draw.choice(there) for name in (first, second)]
        draw.shuffle(names)
        return names[0], names[1]

    def answer(self, name: str, prompt: Sequence[dict[str, str]], draw: Draw, seed: int) -> Shown:
        """One answer of the model called `name` to the messages of `prompt`. Raises `BadInput`."""
        with self._lock:  # one at a time: torch takes all cores anyway
            model = self._load(name)
            began = time.time_ns()
            text = _sample(model, prompt, draw, seed)
        sampling = {"temperature": draw.temperature, "top_p": draw.top_p, "max_new_tokens": draw.max_new_tokens}
        return Shown(text, name, model.digest, sampling | {"seed": seed}, began, time.time_ns())

    def _there(self) -> list[str]:
        """The names that lead to a model now, one a model: the champion may be the candidate too."""
        found: dict[str, str] = {}
        errors = []
        for name in self.names:
            try:
                found.setdefault(self._find(name)[0], name)
            except (BadInput, ConnectionError) as error:
                errors.append(str(error))
        if not found and not self.chosen:  # no registry, or an empty one: what the last build left
            for folder in ("models/aligned", "models/chat"):
                if (self.project / folder / artifacts.MANIFEST).is_file():
                    found.setdefault(self._find(folder)[0], folder)
        if not found:
            raise BadInput(f"no model to ask: {errors[0]}")
        return list(found.values())

    def _find(self, name: str) -> tuple[str, Path]:
        """Digest and folder of a model. One that was found before is used on while the registry does not answer."""
        if name not in ALIASES:
            self._found[name] = _digest(self.project / name), self.project / name
            return self._found[name]
        uri = tracking.tracking_uri(self.project)
        try:
            self._found[name] = _registered(uri, name, self.project / ".groundup" / "registry")
        except ConnectionError:
            if name not in self._found:
                raise
        return self._found[name]

    def _load(self, name: str) -> _Model:
        digest, folder = self._find(name)
        if digest not in self._loaded:
            from llm_core.data.bpe import Tokenizer
            from llm_core.model.checkpoint import load_model

            self._loaded[digest] = _Model(digest, load_model(folder), Tokenizer.load(folder))
            if len(self._loaded) > LOADED_AT_MOST:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(digest)
        return self._loaded[digest]


def _digest(folder: Path) -> str:
    """The digest of a product, or of the weights of a model from elsewhere."""
    if (folder / artifacts.MANIFEST).is_file():
        return artifacts.digest(folder)
    if not (folder / "model.safetensors").is_file():
        raise BadInput(f"{folder}: no model here")
    return artifacts.sha256(folder / "model.safetensors")


def _registered(uri: str | None, alias: str, cache: Path) -> tuple[str, Path]:
    """Digest and folder of the version that an alias names. Raises `ConnectionError` if the registry is not there."""
    if uri is None or (uri.startswith("http") and not _answers(uri)):
        raise ConnectionError("the model registry (MLflow) does not answer")
    from mlflow.exceptions import MlflowException

    from tasks.registry import Registry

    try:
        registry = Registry(uri)
        folder = registry.model_folder(alias, cache)
    except MlflowException as error:
        raise ConnectionError(f"the model registry (MLflow) does not answer: {error.message}") from error
    return folder.name, folder


def _answers(uri: str) -> bool:
    return tracking.ask(uri, "experiments/get-by-name", experiment_name="Default") is not None


def _sample(model: _Model, prompt: Sequence[dict[str, str]], draw: Draw, seed: int) -> str:
    from llm_core.data import dialogue
    from llm_core.model.sampling import generate

    ids = dialogue.encode_prompt(prompt, model.tokenizer)
    context = model.network.config.context
    if len(ids) >= context:
        raise BadInput(f"the prompt is too long: {len(ids)} tokens, the model takes {context - 1}")
    stop = dialogue.stop_ids(model.tokenizer)
    options = {"max_new_tokens": draw.max_new_tokens, "temperature": draw.temperature, "top_p": draw.top_p}
    drawn = generate(model.network, [ids], stop_ids=stop, seed=seed, **options)[0][0]
    special = frozenset(model.tokenizer.specials.values())
    return str(model.tokenizer.decode([token for token in drawn.tokens if token not in special])).strip()
