"""A model's directory for other programs: `transformers`, vLLM, and llama.cpp by way of its own converter.

Our directories have Hugging Face's layout already; an export adds what other programs ask for and ours does not: ids of
the tokens that end an answer, a chat template in the tokenizer's words, the context's length, and how to load it all.

llama.cpp's `convert_hf_to_gguf.py` knows a tokenizer only by a hash of the ids of one test text, so a vocabulary that
was trained here is unknown to it. The format `gguf-ready` therefore brings `to_gguf.py`, which starts that converter
and tells it which of llama.cpp's word patterns the tokenizer uses.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_core.artifacts import MANIFEST, dump_json, new_product, read_manifest
from llm_core.contract import BadInput
from llm_core.data.bpe import DIGITS1, END, GPT2, PAD, TURN_END, USER, Tokenizer
from llm_core.data.vocabulary import CHAT_TEMPLATE, TOKENIZER_JSON, merges, spell
from llm_core.model.checkpoint import WEIGHTS
from llm_core.model.huggingface import why_not_exportable
from llm_core.release.instructions import TO_GGUF, usage

Format = Literal["hf", "gguf-ready"]

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}"
    "<|endoftext|>{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For tokenizers without role tokens, such as GPT-2's; what llm_core.data.dialogue writes in that case."""

LLAMA_CPP_PATTERNS = {GPT2: "gpt-2", DIGITS1: "smollm"}
"""Which word pattern of llama.cpp cuts like ours. `smollm` takes digits out before the rest is cut, so two or more
blanks before a digit stay together there; everything else is cut alike."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Where the export lies, and what its reader should know."""

    folder: Path
    notes: tuple[str, ...]


def export(model: Path, out: Path, form: Format = "hf", *, card: str = "") -> Exported:
    """Write the model in `model` as the new directory `out`. The same model gives the same bytes.

    `card`: Markdown for README.md; empty: the model's own. Raises `BadInput` for an architecture or tokenizer that the
    format cannot hold, and where `out` holds something that is not an earlier export.
    """
    _refuse_to_overwrite(out)
    config = _json(model / "config.json")
    if reason := why_not_exportable(str(config.get("model_type"))):
        raise BadInput(f"{model}: {reason}")
    tokenizer = Tokenizer.load(model)
    notes = []
    if form == "gguf-ready":
        if tokenizer.pattern not in LLAMA_CPP_PATTERNS:
            raise BadInput(f"{model}: llama.cpp has no word pattern like this tokenizer's")
        if tokenizer.pattern == DIGITS1:
            notes.append("llama.cpp cuts two or more blanks before a digit as one word, this tokenizer one by one")
    chat = _is_chat(model)
    own = card or _text(model / "README.md")
    with new_product(out, "export", {"format": form, "model": _digests(model)}) as folder:
        shutil.copyfile(model / WEIGHTS, folder / WEIGHTS)
        shutil.copyfile(model / TOKENIZER_JSON, folder / TOKENIZER_JSON)
        _write_configs(folder, config, tokenizer, chat=chat)
        if form == "gguf-ready":
            _write_vocabulary(folder, tokenizer)
            (folder / "to_gguf.py").write_text(TO_GGUF.format(pattern=LLAMA_CPP_PATTERNS[tokenizer.pattern]))
        context = int(config.get("n_positions") or config["max_position_embeddings"])
        (folder / "README.md").write_text(f"{own.rstrip()}\n\n{usage(form, chat=chat, context=context)}".lstrip())
    return Exported(out, tuple(notes))


def _refuse_to_overwrite(out: Path) -> None:
    if out.exists() and (not (out / MANIFEST).is_file() or read_manifest(out)["kind"] != "export"):
        raise BadInput(f"{out}: exists and is no earlier export; name another folder")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"{path}: no model here")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _is_chat(model: Path) -> bool:
    """Whether the model was tuned to answer; a directory without a manifest is taken as one."""
    return not (model / MANIFEST).is_file() or read_manifest(model)["kind"] != "base"


def _digests(model: Path) -> dict[str, str]:
    """SHA-256 of the files that make the model, where its manifest says them."""
    if not (model / MANIFEST).is_file():
        return {}
    files = read_manifest(model)["files"]
    return {name: files[name]["sha256"] for name in (WEIGHTS, TOKENIZER_JSON, "config.json") if name in files}


def _write_configs(folder: Path, config: dict[str, Any], tokenizer: Tokenizer, *, chat: bool) -> None:
    """config.json, generation_config.json, and what `transformers` asks to know of the tokenizer."""
    specials, roles = tokenizer.specials, USER in tokenizer.specials
    end = TURN_END if chat and TURN_END in specials else END
    pad = PAD if PAD in specials else END
    ids = {"bos_token_id": specials[END], "eos_token_id": specials[end], "pad_token_id": specials[pad]}
    (folder / "config.json").write_bytes(dump_json(config | ids))
    stops = sorted({specials[name] for name in (TURN_END, END) if name in specials})
    generation = ids | {"eos_token_id": stops, "do_sample": True, "temperature": 1.0}
    (folder / "generation_config.json").write_bytes(dump_json(generation))
    names = {"bos_token": END, "eos_token": end, "pad_token": pad}
    (folder / "special_tokens_map.json").write_bytes(dump_json(names))
    settings: dict[str, Any] = names | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "model_max_length": int(config.get("n_positions") or config["max_position_embeddings"]),
    }
    if chat:
        settings["chat_template"] = CHAT_TEMPLATE if roles else PLAIN_TEMPLATE
        (folder / "chat_template.jinja").write_text(settings["chat_template"])
    (folder / "tokenizer_config.json").write_bytes(dump_json(settings))


def _write_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """vocab.json and merges.txt, for programs that do not read tokenizer.json."""
    ids = {spell(token): rank for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1])}
    (folder / "vocab.json").write_text(json.dumps(ids | tokenizer.specials, ensure_ascii=False), encoding="utf-8")
    pairs = [f"{spell(left)} {spell(right)}" for left, right in merges(tokenizer.ranks)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
