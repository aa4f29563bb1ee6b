"""LoRA (Hu et al. 2021): low-rank additions to frozen weights, trained instead of them.

A wrapped layer computes x W^T + alpha / rank * (x A^T) B^T, with A drawn and B zero, so training begins at the model as
it was. The frozen weights keep their names in the state, so a model with an adapter saves, loads and resumes as one
without. Adapters are written in PEFT's layout and open there; GPT-2's joined query-key-value matrix gets one adapter
made of the three (rank and alpha summed, which keeps alpha / rank).
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_core.artifacts import dump_json
from llm_core.contract import BadInput
from llm_core.model import huggingface
from llm_core.model.config import LORA_TARGETS, ModelConfig
from llm_core.model.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_JOINED = re.compile(r"(.*\.self_attn)\.([qkv])_proj")


@dataclass(frozen=True)
class LoraOptions:
    """How large the additions are and where they stand."""

    rank: int = 8
    alpha: float = 16.0
    """The addition is scaled by alpha / rank."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Last names of the layers that get one; those that the architecture lacks are passed over."""
    dropout: float = 0.0
    """Share of the addition's inputs zeroed in training."""


class _Switch(threading.local):
    """Whether the additions of one model are left out, by thread: batches may run side by side."""

    off = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _Switch:
        return _Switch()


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank addition."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float, switch: _Switch) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.dropout, self.switch = scale, dropout, switch
        device = linear.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as PEFT and the paper's own code draw it

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        if self.switch.off:
            return out
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return out + self.scale * F.linear(F.linear(dropped, self.lora_A), self.lora_B)

    @torch.no_grad()
    def effective(self) -> Tensor:
        """The matrix that `forward` multiplies with, as it is now: with the addition unless it is switched off."""
        if self.switch.off:
            return self.weight
        return torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with the addition in its weight."""
        rows, columns = self.weight.shape
        linear = nn.Linear(columns, rows, bias=self.bias is not None, device="meta")
        self.weight.addmm_(self.lora_B, self.lora_A, alpha=self.scale)
        linear.weight = self.weight
        linear.bias = self.bias
        return linear


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with an addition, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def add_lora(model: Transformer, options: LoraOptions) -> None:
    """Freeze all weights and add trained additions, drawn from torch's current random state, to the target layers.

    Raises `BadInput` if no layer of the blocks has such a name, or if there are additions already.
    """
    if lora_layers(model):
        raise BadInput("lora: the model has an adapter already; merge it first")
    found = {
        name: module
        for name, module in model.model.layers.named_modules(prefix="model.layers")
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in options.targets
    }
    if not found:
        raise BadInput(f"lora.targets: no layer of the model is called {' or '.join(options.targets)}")
    model.requires_grad_(False)
    switch = _Switch()
    for name, linear in found.items():
        model.set_submodule(
            name, LoraLinear(linear, options.rank, options.alpha / options.rank, options.dropout, switch)
        )


def merge_lora(model: Transformer) -> Transformer:
    """Put the additions into the weights, which are trained again; the same model, with plain layers."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)
    return model


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, and in this thread, the model computes without its additions: the reference policy of tuning."""
    switches = {id(layer.switch): layer.switch for layer in lora_layers(model).values()}.values()
    before = [switch.off for switch in switches]
    for switch in switches:
        switch.off = True
    try:
        yield
    finally:
        for switch, off in zip(switches, before, strict=True):
            switch.off = off


def save_adapter(model: Transformer, folder: Path, options: LoraOptions, base: str | None = None) -> None:
    """Write the additions into `folder` in PEFT's layout. `base`: name of the model that they belong to.

    PEFT opens them on the saved base model of the architectures that `transformers` has; raises `BadInput` if the
    model has no additions.
    """
    layers = lora_layers(model)
    if not layers:
        raise BadInput("lora: the model has no adapter to save")
    joins = model.config.architecture == "gpt2"
    state = _joined(model.config, layers) if joins else {
        name: (layer.lora_A, layer.lora_B) for name, layer in layers.items()
    }  # fmt: skip
    tensors = {}
    for name, (down, up) in state.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down.detach().float().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up.detach().float().cpu().contiguous()
    parts = max(len(state[name][0]) // options.rank for name in state)
    many = {"c_attn": parts} if joins and parts > 1 else {}
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "bias": "none",
        "r": options.rank, "lora_alpha": options.alpha, "lora_dropout": options.dropout, "inference_mode": True,
        "target_modules": sorted({".".join(name.split(".")[-2 if joins else -1 :]) for name in state}),
        "fan_in_fan_out": joins,
        "rank_pattern": {name: count * options.rank for name, count in many.items()},
        "alpha_pattern": {name: count * options.alpha for name, count in many.items()},
        "init_lora_weights": True, "use_rslora": False, "use_dora": False, "modules_to_save": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(tensors.items())), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_bytes(dump_json(told))


def _joined(config: ModelConfig, layers: dict[str, LoraLinear]) -> dict[str, tuple[Tensor, Tensor]]:
    """The additions of GPT-2 under `transformers`' names; those of query, key and value become one."""
    width = config.width
    state: dict[str, tuple[Tensor, Tensor]] = {}
    groups: dict[str, dict[str, LoraLinear]] = {}
    for name, layer in layers.items():
        if found := _JOINED.fullmatch(name):
            groups.setdefault(found[1], {})[found[2]] = layer
        else:
            state[huggingface.gpt2_name(f"{name}.weight").removesuffix(".weight")] = (layer.lora_A, layer.lora_B)
    for name, parts in groups.items():
        rank = sum(len(layer.lora_A) for layer in parts.values())
        up, place = torch.zeros(3 * width, rank), 0
        for part, layer in parts.items():
            row, size = "qkv".index(part) * width, len(layer.lora_A)
            up[row : row + width, place : place + size] = layer.lora_B.detach().cpu()
            place += size
        down = torch.cat([layer.lora_A.detach().cpu() for layer in parts.values()])
        joined = huggingface.gpt2_name(f"{name}.c_attn.weight").removesuffix(".weight")
        state[joined] = (down, up)
    return state


def load_adapter(model: Transformer, folder: Path) -> LoraOptions:
    """Add the additions that `save_adapter` or PEFT wrote into `folder`, except GPT-2's, which are for `transformers`.

    Raises `BadInput` for what is missing or foreign.
    """
    told, state = _read(folder)
    if told.get("peft_type") != "LORA" or told.get("use_dora") or told.get("modules_to_save"):
        raise BadInput(f"{folder / CONFIG}: not a plain LoRA adapter")
    if model.config.architecture == "gpt2":
        raise BadInput(f"{folder}: an adapter of GPT-2 opens in transformers only; merge it there")
    options = LoraOptions(told["r"], told["lora_alpha"], tuple(told["target_modules"]), told["lora_dropout"])
    add_lora(model, options)
    for name, layer in lora_layers(model).items():
        for part in ("lora_A", "lora_B"):
            mine, value = getattr(layer, part), state.pop(f"{_PREFIX}{name}.{part}.weight", None)
            if value is None or value.shape != mine.shape:
                shape = "missing" if value is None else f"of shape {tuple(value.shape)}, not {tuple(mine.shape)}"
                raise BadInput(f"{folder / WEIGHTS}: {part} of {name} is {shape}")
            with torch.no_grad():
                mine.copy_(value)
    if state:
        raise BadInput(f"{folder / WEIGHTS}: {min(state)} fits no layer of the model")
    return options


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: missing; this is no adapter")
    try:
        return json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise BadInput(f"{folder}: not a whole adapter ({error})") from error
