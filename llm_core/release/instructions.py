"""What an export tells its reader: how to load it, serve it and convert it."""

from __future__ import annotations

TO_GGUF = '''"""Convert this directory to GGUF: `python to_gguf.py LLAMA_CPP [--outfile FILE] [--outtype f16] ...`.

LLAMA_CPP is a checkout of https://github.com/ggml-org/llama.cpp with its Python requirements installed. What follows it
goes to its convert_hf_to_gguf.py. The converter knows tokenizers by a hash and this one was trained from scratch, so it
is told here which word pattern cuts text the same way.
"""

import importlib
import sys
from pathlib import Path

PATTERN = "{pattern}"


def main() -> None:
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "convert_hf_to_gguf.py").is_file():
        sys.exit("usage: python to_gguf.py LLAMA_CPP [--outfile FILE] [--outtype f16] ...")
    here, checkout = Path(__file__).resolve().parent, Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(checkout))
    if (checkout / "gguf-py").is_dir():
        sys.path.insert(0, str(checkout / "gguf-py"))
    converter = importlib.import_module("convert_hf_to_gguf")
    try:
        base = importlib.import_module("conversion.base")
    except ModuleNotFoundError:  # older checkouts hold everything in one file
        base = converter
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: PATTERN
    sys.argv = ["convert_hf_to_gguf.py", str(here), *sys.argv[2:]]
    converter.main()


if __name__ == "__main__":
    main()
'''

_LOAD = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
{ask}
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

Served by vLLM (OpenAI's API on port 8000):

```bash
vllm serve . --max-model-len {context}
```
"""

_ASK_CHAT = """question = [{"role": "user", "content": "What is 12 + 7?"}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
_ASK_PLAIN = 'inputs = tokenizer("Return a list of", return_tensors="pt")'

_GGUF = """
With llama.cpp (a checkout with its Python requirements, and its programs built):

```bash
python to_gguf.py ../llama.cpp --outfile model.gguf --outtype f16
llama-cli -m model.gguf {arguments}
llama-server -m model.gguf -c {context} --port 8080
```
"""


def usage(form: str, *, chat: bool, context: int) -> str:
    """The README's section on loading, serving and (for `gguf-ready`) converting."""
    text = _LOAD.replace("{ask}", _ASK_CHAT if chat else _ASK_PLAIN).replace("{context}", str(context))
    if form == "gguf-ready":
        arguments = '-cnv --jinja -p ""' if chat else '-no-cnv -p "Return a list of"'
        text += _GGUF.replace("{arguments}", arguments).replace("{context}", str(context))
    return text
