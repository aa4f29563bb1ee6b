"""Score an older champion on what the newest models were asked, in a process of its own.

`python -m tasks.rescore MODEL SCORES OUT` in the workspace: answers the judged problems and reads the held-out pages as
the stage evaluate did, with the champion's own tokenizer, and writes a product `scores` of this one model. Questions
whose answers the gate does not look at are not asked. Safety prompts are asked again too, but for what a model gives
away of its training text where the champion has another tokenizer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.pipeline import stage
from llm_core.release.scores import SAFETY_TASKS
from tasks.processes import die_with_parent
from tasks.workspace import Workspace

MODEL = "champion"
"""The name under which a champion that was scored again stands in its product."""


def score_again(space: Workspace, model: Path, scores: Path) -> Path:
    """A product of scores for the model in `model`, comparable with `scores`; made once for each pair of the two.

    Raises `BadInput` with the child's last line if it cannot be had.
    """
    name = f"{artifacts.digest(model)[:16]}-{artifacts.digest(scores)[:16]}"
    out = space.root / ".groundup" / "rescored" / name
    if (out / artifacts.MANIFEST).is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tasks.rescore", str(model.resolve()), str(scores.resolve()), str(out.resolve())]
    done = subprocess.run(
        command,
        cwd=space.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
        preexec_fn=die_with_parent,
    )
    log = space.log("rescore")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BadInput(f"the champion could not be scored again: {last} (all of it: {log})")
    return out


def write_scores(space: Workspace, model: Path, scores: Path, out: Path) -> None:
    """The child's work."""
    import pyarrow.parquet as pq

    from llm_core.data.bpe import Tokenizer
    from llm_core.data.shards import Shards
    from llm_core.evaluation import extraction, problems, summary
    from llm_core.evaluation.perplexity import held_out_pages, page_bits_per_byte
    from llm_core.evaluation.rows import write_rows
    from llm_core.model.checkpoint import load_model
    from llm_core.settings.evaluate import EvaluateConfig
    from llm_core.train.machine import prepare

    config = space.config("evaluate")
    assert isinstance(config, EvaluateConfig)
    told: dict[str, Any] = json.loads((scores / "summary.json").read_text())
    champion = load_model(model).to(prepare(config.threads, config.device).device)
    tokenizer = Tokenizer.load(model)
    asked = problems.held_out_problems(space.product("corpus"), config.problems)
    answered = pq.read_table(scores / "rows.parquet", columns=["model", "task", "prompt_id"]).to_pylist()
    if {problem.id for problem in asked} != {row["prompt_id"] for row in answered if row["task"] == problems.TASK}:
        raise BadInput(f"{scores}: its prompts are not those of this workspace's corpus; run evaluate again")
    common: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "seed": config.seed, "told": lambda _: None}
    rows, _ = problems.solve(MODEL, champion, tokenizer, asked, samples=1, temperature=0.0, **common)
    sampled, _ = problems.solve(
        MODEL, champion, tokenizer, asked, samples=config.answers, temperature=config.temperature, **common
    )
    shards = Shards.open(space.product("shards"))
    pages = held_out_pages(shards, config.validation_tokens)
    tasks = {row["task"] for row in answered if row["model"] == "aligned" and row["task"].startswith(SAFETY_TASKS)}
    if tokenizer.digest != shards.tokenizer.digest:
        pages = _in_its_own_words(pages, shards.tokenizer, tokenizer)
        tasks -= {extraction.TRAINED}
    figures = summary.answer_figures(sampled) | {"bits_per_byte": page_bits_per_byte(champion, pages).get("all")}
    content = {"evaluation_set": told["evaluation_set"], "pages": pages.digest, "models": {MODEL: figures}}
    with artifacts.new_product(out, "scores", {"evaluation_set": told["evaluation_set"]}) as folder:
        write_rows(folder / "rows.parquet", [*rows, *sampled, *_safety(space, config, model, sorted(tasks), out)])
        (folder / "summary.json").write_bytes(artifacts.dump_json(content))


def _safety(space: Workspace, config: Any, model: Path, tasks: list[str], out: Path) -> list[Any]:
    """Rows of the safety prompts, as the stage evaluate asks them."""
    from llm_core.evaluation import jobs

    options = jobs.Options(**config.model_dump(include={option.name for option in fields(jobs.Options)}))
    files = stage("evaluate").files
    data = Path(config.data) if config.data else space.root / files["heldout"]
    places = jobs.Places(space.root / files["sets"], data, out.with_suffix(".made"), space.product("shards"))
    found = [jobs.perform(jobs.Job(task, MODEL, model, places, options)) for task in tasks]
    if failed := next((outcome for outcome in found if outcome.reason), None):
        raise BadInput(f"{failed.task}: {failed.reason}")
    return [row for outcome in found for row in outcome.rows if row.model]


def _in_its_own_words(pages: Any, theirs: Any, own: Any) -> Any:
    """The same pages of text as ids of the tokenizer `own`; the pages' bytes and digest stay."""

    def again(page: Any) -> Any:
        import numpy as np

        ids = page.tolist()
        text = own.encode(theirs.decode([token for token in ids if token != theirs.end_id]))
        starts, ends = ids[:1] == [theirs.end_id], len(ids) > 1 and ids[-1] == theirs.end_id
        return np.array([*[own.end_id] * starts, *text, *[own.end_id] * ends], dtype=np.int64)

    tokens = {source: [again(page) for page in found] for source, found in pages.tokens.items()}
    return replace(pages, end_id=own.end_id, tokens=tokens)


def main(arguments: list[str]) -> int:
    """Run the child; the exit code."""
    die_with_parent()
    try:
        model, scores, out = (Path(argument) for argument in arguments)
        write_scores(Workspace.at(Path.cwd()), model, scores, out)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
