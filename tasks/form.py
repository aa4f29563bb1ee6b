"""What a run can be started with from Prefect's page: the sections of params.yaml, each field of which may stay blank.

Prefect draws a form from the types of a flow's parameters. The types here are made from the stages' own settings, so a
field added there stands in the form with its text, its bounds and its choices. A blank field keeps what params.yaml
says.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from llm_core.contract import Config
from llm_core.pipeline import VERBS
from tasks.params import SECTIONS

_BLANK: Any = Annotated[None, SkipJsonSchema()]  # type: ignore[type-arg]  # so the page offers no second kind
HERE = Path(".")
PRESETS = Path(__file__).resolve().parents[1] / "presets"


def _blank_form(config: type[BaseModel], name: str) -> type[BaseModel]:
    """A model with the fields of `config`, each of which may be None."""
    fields: dict[str, Any] = {}
    for key, info in config.model_fields.items():
        kind = _kind(info, f"{name}{key.title()}")
        about = " ".join((info.description or _first_line(info.annotation)).split()) + _range(info)
        fields[key] = (
            kind | _BLANK,
            Field(
                default=None,
                title=key,
                description=f"{about} Blank: as in params.yaml.",
                json_schema_extra=_say_no_default,
            ),
        )
    doc = " ".join((config.__doc__ or "").split()).partition(". ")[0]
    return create_model(name, __config__=ConfigDict(extra="forbid"), __doc__=doc, **fields)


def _say_no_default(schema: dict[str, Any]) -> None:
    """A default that is null would be sent for each blank field as soon as one is filled, and then be refused."""
    schema.pop("default", None)


def _range(info: FieldInfo) -> str:
    """The field's bounds in words, where its own text does not name them: Prefect's page does not show bounds."""
    words = []
    for name, word in (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "up to")):
        for bound in (getattr(part, name, None) for part in info.metadata):
            if bound is not None:
                words.append((f"{word} {bound:g}" if abs(bound) < 1e6 else f"{word} {bound:,}", f"{bound:g}"))
    said = (info.description or "").replace(",", "")
    if not words or all(re.search(rf"(?<![\d.]){re.escape(bound)}(?![\d.]*\d)", said) for _, bound in words):
        return ""
    return f" Range: {', '.join(text for text, _ in words)}."


def _kind(info: FieldInfo, name: str) -> Any:
    """The form's type of a field: nested sections as boxes, simple values with their bounds, the rest as JSON."""
    kind = _without_none(info.annotation)
    if isinstance(kind, type) and issubclass(kind, Config):
        return _blank_form(kind, name)
    if kind is bool:  # a switch could not be left blank: the page would send `false` for it
        return Annotated[bool, WithJsonSchema({"enum": [True, False]})]
    if kind in (int, float, str) or get_origin(kind) is typing.Literal:
        return Annotated[(kind, *info.metadata)] if info.metadata else kind
    if kind is Path:
        return str
    return dict[str, Any] if get_origin(kind) is dict else list[Any]


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        return rest[0] if len(rest) == 1 else Any
    return annotation


def _first_line(annotation: Any) -> str:
    return (getattr(annotation, "__doc__", None) or "").strip().partition("\n")[0]


def _presets() -> dict[str, str]:
    """Each preset's name and what its first comment says of it, its cost included."""
    told = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        comment = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
        told[path.stem] = " ".join(line.lstrip("# ") for line in comment)
    return told


def _settings_form() -> type[BaseModel]:
    """All sections in one model."""
    sections: dict[str, Any] = {}
    for section, config in SECTIONS.items():
        about = " ".join((config.__doc__ or "").split())
        form = _blank_form(config, section.title()) | _BLANK
        about_blank: dict[str, Any] = {"title": section, "description": about, "json_schema_extra": _say_no_default}
        sections[section] = (form, Field(default=None, **about_blank))
    doc = "Sections of params.yaml; a field left blank keeps what it says."
    return create_model("Settings", __config__=ConfigDict(extra="forbid"), __doc__=doc, **sections)


def _about(text: str, **schema: Any) -> WithJsonSchema:
    """What the page shows of a parameter; Prefect drops a description that is not part of the type's own schema."""
    return WithJsonSchema({"type": "string", **schema, "description": text})


_PRESETS = _presets()
_ABOUT_PRESETS = " ".join(f"{name.upper()}: {text}" for name, text in _PRESETS.items())
_VERBS: dict[str, Any] = {"type": "array", "items": {"type": "string", "enum": list(VERBS)}}
Folder = Annotated[Path, _about("The project (.) or an experiment in its runs/.", format="path")]
Stages = Annotated[tuple[str, ...], _about("Only these stages and what they need. None: all.", **_VERBS)]
Forced = Annotated[tuple[str, ...], _about("Stages that run even if they are fresh.", **_VERBS)]
Preset = Annotated[
    str | None,
    WithJsonSchema(  # null is a choice, and no type is said: the page sends null for what was left blank
        {
            "enum": [*_PRESETS, None],
            "description": f"A file of presets/, laid over params.yaml. Blank: none. {_ABOUT_PRESETS}",
        }
    ),
]
if typing.TYPE_CHECKING:
    Settings = Mapping[str, Any] | None
else:
    Settings = _settings_form() | _BLANK
