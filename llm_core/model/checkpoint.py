"""A model as a directory in Hugging Face's layout: config.json, model.safetensors, tokenizer files, a model card.

Only safetensors, no pickle. The bytes depend on the weights and the config alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_core.artifacts import dump_json
from llm_core.contract import BadInput
from llm_core.model import huggingface
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer

WEIGHTS = "model.safetensors"


class SavedTokenizer(Protocol):
    """What a checkpoint needs of a tokenizer: its files beside the weights, and the id that ends a text."""

    @property
    def end_id(self) -> int:
        """Id of the token that ends a text."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`."""


def save_model(model: Transformer, folder: Path, tokenizer: SavedTokenizer | None = None, card: str = "") -> None:
    """Write the model (fp32), its tokenizer and its card (README.md, Markdown) into `folder`, which must exist."""
    config = model.config
    end_id = None if tokenizer is None else tokenizer.end_id
    state = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    state = {name: value.contiguous() for name, value in huggingface.to_state(config, state).items()}
    save_file(dict(sorted(state.items())), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_bytes(dump_json(huggingface.to_config(config, end_id)))
    generation = {"bos_token_id": end_id, "eos_token_id": end_id, "do_sample": True, "temperature": 1.0}
    (folder / "generation_config.json").write_bytes(dump_json(generation))
    if tokenizer is not None:
        tokenizer.save(folder)
    if card:
        (folder / "README.md").write_text(card)


def load_model(folder: Path) -> Transformer:
    """The model in `folder`, in eval mode, fp32, on the CPU. Raises `BadInput` naming what is missing or foreign."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise BadInput(f"{config_path}: no model here")
    config = _config(config_path)
    with torch.random.fork_rng(devices=[]):
        model = Transformer(config)
    wanted = model.state_dict()
    try:
        state = huggingface.from_state(config, _read(folder / WEIGHTS), sorted(wanted))
    except KeyError as missing:
        raise BadInput(f"{folder / WEIGHTS}: has no tensor {missing}, which config.json asks for") from missing
    for name, value in wanted.items():
        if name not in state:
            raise BadInput(f"{folder / WEIGHTS}: has no tensor {name!r}, which config.json asks for")
        if state[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)}, config.json says {tuple(value.shape)}"
            raise BadInput(f"{folder / WEIGHTS}: tensor {name!r} is {shapes}")
        if not state[name].dtype.is_floating_point:
            kind = str(state[name].dtype).removeprefix("torch.")
            raise BadInput(f"{folder / WEIGHTS}: tensor {name!r} holds {kind}, not floating-point numbers")
    model.load_state_dict({name: state[name].float() for name in wanted})
    return model.eval()


def _config(path: Path) -> ModelConfig:
    try:
        return huggingface.from_config(json.loads(path.read_text()))
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: not JSON ({error})") from error
    except KeyError as missing:
        raise BadInput(f"{path}: has no {missing}, which the model's shape needs") from missing


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadInput(f"{path}: missing")
    try:
        state: dict[str, Tensor] = load_file(path)
        return state
    except SafetensorError as error:
        raise BadInput(f"{path}: not a whole safetensors file ({error})") from error
