"""params.yaml: read, overlaid by presets and `--set`, and checked before anything starts.

Every section is checked against its stage's Config. What is wrong is told in one sentence: file, field, value, bound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llm_core.contract import BadInput, Config
from llm_core.pipeline import PIPELINE
from llm_core.release.options import GateOptions
from llm_core.settings.cluster import ClusterSettings
from llm_core.settings.placement import PlacementSettings
from llm_core.settings.storage import StorageSettings
from tasks import secrets

SECTIONS: dict[str, type[Config]] = {row.verb: row.config for row in PIPELINE} | {"promote": GateOptions}

CLUSTER = "cluster"
"""A section that may be left out and that no stage depends on: it says where work is done, not what."""
PLACEMENT = "placement"
"""The same: on which machines each stage runs (`places.py`)."""
STORAGE = "storage"
"""The same: where the large files of the data stages lie."""
ELSEWHERE: dict[str, type[Config]] = {
    CLUSTER: ClusterSettings,
    PLACEMENT: PlacementSettings,
    STORAGE: StorageSettings,
}
CLUSTER_VARIABLE = "GROUNDUP_CLUSTER"
"""Environment variable with the address of a Dask scheduler; `groundup run --cluster` sets it for what it starts."""
STORAGE_VARIABLE = "GROUNDUP_STORAGE"
"""Environment variable with the URL of a store, such as s3://bucket/groundup."""

Params = dict[str, Any]


def read(path: Path) -> Params:
    """The mapping in a YAML file, unchecked. Raises `BadInput` if it is not one."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not YAML: it is no UTF-8 text ({error})") from None
    params = _loaded(text, str(path))
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise BadInput(f"{path}: must hold sections ({', '.join(SECTIONS)}), found {type(params).__name__}")
    return params


def _loaded(text: str, source: str) -> Any:
    """The value of a YAML text. Raises `BadInput`; besides its own errors, dates and numbers raise Python's."""
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise BadInput(f"{source}: not YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise BadInput(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def check(params: Params, source: str) -> dict[str, Config]:
    """A checked Config for every section; absent sections take their defaults. Raises `BadInput`."""
    for section in params:
        if section not in SECTIONS | ELSEWHERE:
            raise BadInput(f"{source}: unknown section {section!r}; the sections are {', '.join(SECTIONS)}")
    for section in ELSEWHERE:
        section_config(section, params, source)
    return {section: section_config(section, params, source) for section in SECTIONS}


def section_config(section: str, params: Params, source: str) -> Config:
    """The checked Config of one section. Raises `BadInput`."""
    try:
        secrets.refuse(section, params.get(section), source)
        kind = (SECTIONS | ELSEWHERE)[section]
        return kind.model_validate(params.get(section) or {})
    except RecursionError:
        raise BadInput(f"{source}: {section}: it is nested too deeply, or holds itself") from None
    except ValidationError as error:
        raise BadInput(f"{source}: {_sentence(section, error)}") from None


def placed(config: Config, params: Params, source: str) -> Config:
    """The config with where its work is done and its files lie: by the environment, its own setting, or the section.

    Raises `BadInput`.
    """
    for section, variable in ((CLUSTER, CLUSTER_VARIABLE), (STORAGE, STORAGE_VARIABLE)):
        if section not in type(config).model_fields:
            continue
        if value := os.environ.get(variable):
            named = {"kind": "dask", "address": value} if section == CLUSTER else {"url": value}
            said = section_config(section, {section: named}, variable)
        elif section in config.model_fields_set:
            continue
        else:
            said = section_config(section, params, source)
        config = config.model_copy(update={section: said})
    return config


def _sentence(section: str, error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    field = ".".join([section, *(str(part) for part in first["loc"])])
    if secrets.names_a_secret(field):  # what stands under such a name is not repeated
        text = f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}; secrets must stand in the environment"
    elif first["type"] == "extra_forbidden":
        text = f"{field}: no such parameter (value {first['input']!r})"
    elif first["type"] == "missing":
        text = f"{field}: is required"
    else:
        text = f"{field} = {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> Params:
    """`base` with the values of `top` laid over it, section by section; lists are replaced whole."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_assignments(assignments: Iterable[str]) -> Params:
    """`section.key=value` texts, the value as YAML, as nested mappings. Raises `BadInput`."""
    params: Params = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise BadInput(f"--set {assignment}: write it as section.key=value, for example pretrain.steps=500")
        value: Any = _loaded(text, f"--set {path.strip()}")
        for key in reversed(keys):
            value = {key: value}
        params = overlay(params, value)
    return params


def filled(params: Mapping[str, Any]) -> Params:
    """The values that are not None, without the sections that this leaves empty."""
    kept = {key: filled(value) if isinstance(value, Mapping) else value for key, value in params.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def assignments(params: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The same values as `section.key=value` texts; what is None or empty says nothing."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from assignments(value, f"{path}{key}.")
        elif value is not None:
            yield f"{path}{key}={json.dumps(value)}"


def dump(params: Params) -> str:
    """YAML text, keys in the order given."""
    text: str = yaml.safe_dump(params, sort_keys=False, allow_unicode=True)
    return text
