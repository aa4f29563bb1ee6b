"""An export is opened by `transformers` alone and says the same words; llama.cpp's converter gets what it asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_core.artifacts import new_product, verify
from llm_core.contract import BadInput, Event, Metric, Note
from llm_core.data import dialogue
from llm_core.data.bpe import DIGITS1, END, GPT2, SPECIALS, Tokenizer, train
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.config import ModelConfig
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer
from llm_core.release.export import PLAIN_TEMPLATE, export
from llm_core.settings.pretrain import PretrainConfig
from llm_core.train.pretrain import run as pretrain

TEXTS = [
    f"The sum of {a} and {b} is {a + b}. It's what a reader's list, in turn, gives." for a in range(30) for b in (3, 14)
]
QUESTION = [{"role": "user", "content": "What is 12 + 7?  It's easy."}]


def tokenizer_with(pattern: str, *, roles: bool) -> Tokenizer:
    found = train(TEXTS, 340, pattern)
    names = SPECIALS if roles else (END,)
    return Tokenizer(found.ranks, pattern, {name: len(found.ranks) + i for i, name in enumerate(names)})


def saved(name: str, tokenizer: Tokenizer, folder: Path, kind: str = "chat") -> Path:
    """A model with random weights, large enough to be sure of its next token."""
    sizes = {"vocab_size": tokenizer.vocab_size, "layers": 2, "heads": 4, "width": 32, "context": 96}
    torch.manual_seed(4)
    model = Transformer(ModelConfig.preset(name, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    with new_product(folder, kind) as inside:
        save_model(model, inside, tokenizer, "# Card\n\nA small model.\n")
    return folder


@pytest.mark.parametrize("roles", [True, False], ids=["roles", "plain"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_transformers_says_the_same_greedily(name: str, roles: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizer_with(DIGITS1 if roles else GPT2, roles=roles)
    made = export(saved(name, tokenizer, tmp_path / "chat"), tmp_path / "out")
    verify(made.folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made.folder).eval()
    reader = transformers.AutoTokenizer.from_pretrained(made.folder)
    asked = reader.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = dialogue.encode_prompt(QUESTION, tokenizer)
    assert asked["input_ids"][0].tolist() == prompt
    model = load_model(tmp_path / "chat")
    ours = generate(model, [prompt], max_new_tokens=40, temperature=0, stop_ids=dialogue.stop_ids(tokenizer))[0][0]
    answer = theirs.generate(**asked, max_new_tokens=40, do_sample=False)[0, len(prompt) :]
    assert answer.tolist() == ours.tokens
    text = tokenizer.decode([token for token in ours.tokens if token not in tokenizer.specials.values()])
    assert reader.decode(answer, skip_special_tokens=True) == text
    for words in TEXTS[::20]:
        assert reader(words)["input_ids"] == tokenizer.encode(words)


def test_what_other_programs_ask_for_is_there(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(DIGITS1, roles=True)
    export(saved("qwen3", tokenizer, tmp_path / "chat"), tmp_path / "out")
    config, generation, words = (
        json.loads((tmp_path / "out" / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    specials = tokenizer.specials
    assert config["eos_token_id"] == specials["<|end|>"]
    assert generation["eos_token_id"] == sorted([specials["<|end|>"], specials["<|endoftext|>"]])
    assert config["pad_token_id"] == specials["<|pad|>"]
    assert words["eos_token"] == "<|end|>"
    assert words["model_max_length"] == 96
    assert words["chat_template"] == (tmp_path / "out" / "chat_template.jinja").read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# Card")
    assert "vllm serve . --max-model-len 96" in card
    assert "llama" not in card


def test_a_base_model_ends_texts_and_has_no_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(DIGITS1, roles=True)
    export(saved("llama", tokenizer, tmp_path / "base", kind="base"), tmp_path / "out")
    words = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert words["eos_token"] == END
    assert "chat_template" not in words


def test_the_same_model_gives_the_same_bytes_and_strangers_are_not_overwritten(tmp_path: Path) -> None:
    model = saved("qwen3", tokenizer_with(GPT2, roles=False), tmp_path / "chat")
    for _ in range(2):
        export(model, tmp_path / "one", "gguf-ready", card="# Another card")
    export(model, tmp_path / "two", "gguf-ready", card="# Another card")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    with pytest.raises(BadInput, match="exists and is no earlier export"):
        export(model, tmp_path / "chat")


@pytest.mark.parametrize("name", ["seed", "speedrun"])
def test_what_cannot_be_exported_says_so(name: str, tmp_path: Path) -> None:
    model = saved(name, tokenizer_with(GPT2, roles=False), tmp_path / "chat")
    with pytest.raises(BadInput, match=f"architecture '{name}' cannot be exported"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("preset", "told"), [("speedrun", True), ("llama", False)])
def test_pretrain_says_beforehand_what_cannot_be_exported(
    preset: str, told: bool, small_world: Any, tmp_path: Path
) -> None:
    shape = {"preset": preset, "layers": 2, "heads": 2, "width": 32, "context": 32}
    config = PretrainConfig.model_validate(
        {"model": shape, "steps": 1, "batch_sequences": 2, "passes": 1, "threads": 1}
    )
    heard: list[Event] = []
    (tmp_path / "scratch").mkdir()
    pretrain(config, shards=small_world.shards, out=tmp_path / "base", scratch=tmp_path / "scratch", emit=heard.append)
    place = next((i for i, e in enumerate(heard) if isinstance(e, Note) and "cannot be exported" in e.text), None)
    assert (place is not None) == told
    first_step = next(i for i, e in enumerate(heard) if isinstance(e, Metric))
    assert place is None or place < first_step


def test_a_word_pattern_that_llama_cpp_has_not_is_refused(tmp_path: Path) -> None:
    model = saved("llama", tokenizer_with(r"\s+|\S+", roles=False), tmp_path / "chat")
    export(model, tmp_path / "hf")
    with pytest.raises(BadInput, match="has no word pattern like"):
        export(model, tmp_path / "gguf", "gguf-ready")


CONVERTER = """
import json, sys
from conversion.base import TextModel
def main():
    print(json.dumps({"arguments": sys.argv[1:], "pattern": TextModel().get_vocab_base_pre(None)}))
"""


def test_to_gguf_tells_the_converter_the_word_pattern(tmp_path: Path) -> None:
    """Against a stand-in with the converter's module names."""
    made = export(
        saved("qwen3", tokenizer_with(DIGITS1, roles=True), tmp_path / "chat"), tmp_path / "out", "gguf-ready"
    )
    assert "blanks before a digit" in made.notes[0]
    checkout = tmp_path / "llama.cpp"
    (checkout / "conversion").mkdir(parents=True)
    (checkout / "conversion" / "base.py").write_text(
        "class TextModel:\n    def get_vocab_base_pre(self, tokenizer):\n        raise NotImplementedError\n"
    )
    (checkout / "convert_hf_to_gguf.py").write_text(CONVERTER)
    command = [sys.executable, str(tmp_path / "out" / "to_gguf.py"), str(checkout), "--outtype", "f16"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told == {"arguments": [str(tmp_path / "out"), "--outtype", "f16"], "pattern": "smollm"}
    assert subprocess.run(command[:2], capture_output=True).returncode == 1


def test_the_plain_template_is_what_the_dialogues_are() -> None:
    jinja2 = pytest.importorskip("jinja2")
    tokenizer = tokenizer_with(GPT2, roles=False)
    turns = [*QUESTION, {"role": "assistant", "content": "It is 19."}, {"role": "user", "content": "And 3 + 4?"}]
    text = jinja2.Template(PLAIN_TEMPLATE, keep_trailing_newline=True).render(
        messages=turns, add_generation_prompt=True
    )
    told = tokenizer.decode(dialogue.encode_prompt(turns, tokenizer))
    assert text == told
