"""One trainer of benchmarks/train_cpu.py in a process of its own: it trains as many steps as it is told, and waits.

    python -m benchmarks.train_cpu_child CONTENDER CONFIG [--allocator]

It prints one JSON line when its first step is done, one for each number of steps read from standard input (the seconds
that they took), and at the end of the input one with its peak memory. Peers run with their own code; what they do not
bring (the step: loss, clipping, fused AdamW) is torch's. Imports of a contender stand in its own function: litgpt's
environment has no transformers, and each process should hold its own libraries only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = time.time()
THREADS = 2
CONFIGS: dict[str, dict[str, int]] = {
    "C1": {"layers": 4, "heads": 4, "width": 128, "context": 64, "vocab_size": 65, "batch": 12},
    "C10": {"layers": 6, "heads": 6, "width": 384, "context": 256, "vocab_size": 65, "batch": 8},
    "S8": {"layers": 6, "heads": 6, "width": 288, "context": 256, "vocab_size": 8192, "batch": 8},
    "S50": {"layers": 6, "heads": 6, "width": 288, "context": 256, "vocab_size": 50257, "batch": 8},
}
CLASSIC = {"hf_gpt2", "ours_gpt2"}
STEPS = 1_000_000
Step = Callable[[], object]


class Clock:
    """Times the steps between one command and the next."""

    def __init__(self) -> None:
        self.left, self.started, self.processor, self.begun = 1, 0.0, 0.0, False

    def tick(self) -> None:
        """To be called after every step; waits for a command when those asked for are done."""
        self.left -= 1
        if self.left:
            return
        if self.begun:
            tell(seconds=time.perf_counter() - self.started, cpu=time.process_time() - self.processor)
        else:
            tell(first_step=time.time() - BEGAN, memory=peak())
        line = sys.stdin.readline()
        if not line:
            tell(memory=peak())
            os._exit(0)
        self.left, self.begun = int(line), True
        self.started, self.processor = time.perf_counter(), time.process_time()


def tell(**facts: float) -> None:
    """One line for the parent."""
    print(json.dumps(facts), flush=True)


def peak() -> float:
    """Largest resident memory so far in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def hidden_of(name: str, width: int) -> int:
    """Inner width: 4 width, or 8/3 width rounded up to 32 where it is gated, so that all have the same work."""
    return 4 * width if name in CLASSIC else -(-8 * width // 96) * 32


def keep_freed_memory() -> None:
    """The allocator settings of llm_core.train.machine, for a peer."""
    libc = ctypes.CDLL(None)
    for option, value in ((-3, 1 << 25), (-1, (1 << 31) - 1), (-8, 2)):
        libc.mallopt(option, value)


def ours(name: str, config: dict[str, int], clock: Clock) -> None:
    """Our own loop as the stage pretrain calls it."""
    import tempfile

    import torch

    from llm_core.contract import Event, Progress
    from llm_core.model.config import ModelConfig
    from llm_core.model.transformer import Transformer
    from llm_core.train.batches import PageBatches, Windows, next_token_loss_on
    from llm_core.train.loop import LoopOptions, fit
    from llm_core.train.machine import prepare
    from llm_core.train.optim import OptimizerOptions, make_optimizer

    shape = {key: value for key, value in config.items() if key != "batch"}
    machine = prepare(THREADS, "cpu", "fp32", lanes=2)
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset(name.removeprefix("ours_"), dropout=0.0, **shape))
    tokens = torch.randint(0, config["vocab_size"], (200_000,)).numpy()

    def emit(event: Event) -> None:
        if isinstance(event, Progress):
            clock.tick()

    fit(
        model,
        batch=PageBatches(Windows(lambda _: tokens, config["context"], 0), None, 0.0, config["batch"], machine.lanes),
        objective=next_token_loss_on(machine),
        optimizer=make_optimizer(model, OptimizerOptions(name="adamw", learning_rate=1e-4)),
        schedule=lambda _: 1.0,
        options=LoopOptions(STEPS, accumulate=machine.lanes, lanes=machine.lanes, save_every_seconds=1e9),
        scratch=Path(tempfile.mkdtemp()),
        emit=emit,
    )


def huggingface(name: str, config: dict[str, int], clock: Clock) -> None:
    """transformers' model and its own loss."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_attention_heads": config["heads"], "num_hidden_layers": config["layers"],
        "vocab_size": config["vocab_size"], "hidden_size": config["width"], "use_cache": False,
    }  # fmt: skip
    if name == "hf_gpt2":
        dropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = transformers.GPT2Config(**sizes, **dropped, n_positions=config["context"])
    else:
        inner = hidden_of(name, config["width"])
        length = config["context"]
        shape = transformers.LlamaConfig(**sizes, intermediate_size=inner, max_position_embeddings=length)
    model = transformers.AutoModelForCausalLM.from_config(shape)
    peer_loop(model, lambda rows: model(input_ids=rows[:, :-1], labels=rows[:, :-1]).loss, config, clock)


def litgpt(name: str, config: dict[str, int], clock: Clock) -> None:
    """litgpt's model and its own loss."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    shape = Config(
        block_size=config["context"], vocab_size=config["vocab_size"], padded_vocab_size=config["vocab_size"],
        n_layer=config["layers"], n_head=config["heads"], n_embd=config["width"], rotary_percentage=1.0,
        parallel_residual=False, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
        intermediate_size=hidden_of(name, config["width"]),
    )  # fmt: skip
    model = GPT(shape)
    model.max_seq_length = config["context"]
    peer_loop(model, lambda rows: chunked_cross_entropy(model(rows[:, :-1]), rows[:, 1:]), config, clock)


def peer_loop(model: Any, loss_of: Callable[[Any], Any], config: dict[str, int], clock: Clock) -> None:
    """The plain step around a peer's model and loss."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, config["vocab_size"], (200_000,))
    while True:
        starts = torch.randint(0, len(tokens) - config["context"] - 1, (config["batch"],)).tolist()
        rows = torch.stack([tokens[start : start + config["context"] + 1] for start in starts])
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss)
        clock.tick()


CONTENDERS: dict[str, Callable[[str, dict[str, int], Clock], None]] = {
    "ours_llama": ours, "ours_gpt2": ours, "ours_qwen3": ours,
    "hf_llama": huggingface, "hf_gpt2": huggingface, "litgpt": litgpt,
}  # fmt: skip


def main() -> None:
    """Train until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("--allocator", action="store_true", help="the allocator settings that our trainer makes")
    given = parser.parse_args()
    if given.allocator:
        keep_freed_memory()
    CONTENDERS[given.contender](given.contender, CONFIGS[given.config], Clock())


if __name__ == "__main__":
    main()
