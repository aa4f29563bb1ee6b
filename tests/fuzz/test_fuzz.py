"""Broken input to everything that reads what others wrote: the kept corpus, then inputs made from it.

`python -m benchmarks.fuzz` is the long version; what it finds is kept in tests/fuzz/corpus and runs here.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_targets import TARGETS, Target, mutated

SHORT = {"extraction": 400, "shards": 400, "api": 400, "params": 400}


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_the_corpus_and_what_is_made_from_it(target: Target) -> None:
    corpus = target.seeds()
    assert corpus, "no corpus"
    outcomes = {target(data) for data in corpus}
    draw = random.Random(target.name)
    for _ in range(SHORT.get(target.name, 1_000)):
        data = mutated(draw, corpus, target.words)
        outcomes.add(target(data))  # raises what is not promised
    assert len(outcomes) > 1 or not target.allowed, "all inputs went the same way: the target tests nothing"


@pytest.mark.parametrize("name", ["sitemap", "manifest", "params", "warc", "tokenizer"])
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_anything_at_all(name: str, data: bytes) -> None:
    TARGETS[name](data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    field=st.sampled_from(
        ["prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "stream", "echo"]
    ),
    value=_JSON,
    chat=st.booleans(),
)
def test_any_value_in_any_field_of_a_request(field: str, value: object, chat: bool) -> None:
    body = {"model": "groundup", "max_tokens": 1}
    body |= {"messages": [{"role": "user", "content": "a"}]} if chat else {"prompt": "a"}
    TARGETS["api"](bytes([7 if chat else 6]) + json.dumps(body | {field: value}).encode())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(section=st.sampled_from(["acquire", "clean", "pretrain", "align", "promote"]), value=_JSON)
def test_any_value_in_any_section(section: str, value: object) -> None:
    TARGETS["params"](json.dumps({section: value}, allow_nan=True).encode())


def test_a_crash_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: a target that breaks a promise ends the run, and its input is kept."""
    from benchmarks import fuzz

    def breaks(data: bytes) -> None:
        if b"\xff" in data:
            raise ZeroDivisionError

    monkeypatch.setattr(fuzz, "CORPUS", tmp_path)
    with pytest.raises(ZeroDivisionError):
        fuzz.by_mutation(Target("breaks", breaks, ()), 100_000, 60, 1)
    kept = list((tmp_path / "breaks").glob("crash-*"))
    assert len(kept) == 1
    assert b"\xff" in kept[0].read_bytes()


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", TARGETS)
def test_a_hundred_thousand(name: str, root: Path) -> None:
    command = [sys.executable, "-c", _LONG, name]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert int(done.stdout.split()[-1]) >= 100_000


_LONG = """
import sys
from benchmarks import fuzz
print(fuzz.by_mutation(fuzz.TARGETS[sys.argv[1]], 100_000, 1e9, 2)["executions"])
"""
