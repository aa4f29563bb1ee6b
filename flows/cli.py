"""The `groundup` command. Everything heavy is imported inside the command that needs it: help must come at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import trusting

app = typer.Typer(
    help="Build a language model from the ground up, on your own data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _project() -> Path:
    """The main workspace: the nearest directory upwards that holds params.yaml and dvc.yaml."""
    from llm_core.contract import BadInput

    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            inside_runs = folder.parent.name == "runs" and (folder.parent.parent / "dvc.yaml").is_file()
            return folder.parent.parent if inside_runs else folder
    raise BadInput(f"{Path.cwd()}: not inside a Groundup project (no params.yaml and dvc.yaml here or above)")


@app.command()
def run(
    stages: Annotated[list[str] | None, typer.Argument(help="Only these stages and what they need.")] = None,
    preset: Annotated[str | None, typer.Option(help="A file of presets/ laid over params.yaml: an experiment.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value laid over params.yaml: an experiment.")
    ] = None,
    force: Annotated[list[str] | None, typer.Option(help="Run this stage even if it is fresh.")] = None,
    name: Annotated[str | None, typer.Option(help="The experiment's name.")] = None,
    cluster: Annotated[str | None, typer.Option(help="A Dask scheduler, tcp://HOST:PORT, for the data stages.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Bring the model up to date: run what is stale, restore what is cached, leave what is fresh."""
    from flows import running

    raise typer.Exit(
        running.run(
            _project(), stages or [], preset, assign or [], force or [], name=name, cluster=cluster, as_json=as_json
        )
    )


@app.command()
def refresh(
    build: Annotated[bool, typer.Option(help="Build the model anew if the data changed.")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the finding, or the build's summary, as JSON.")
    ] = False,
) -> None:
    """Ask every source again whether it changed; build only if it did."""
    from flows import running

    raise typer.Exit(running.refresh(_project(), build=build, as_json=as_json))


@app.command()
def feedback(
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train on what people voted: collect, reward, align and evaluate from the chat model, then ask the gate."""
    from flows import running

    raise typer.Exit(running.feedback(_project(), as_json=as_json))


@app.command()
def chat(
    model: Annotated[
        list[str] | None, typer.Option(help="An alias of the registry or a model's directory; may be repeated.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than loopback needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="If it is taken, a free one is used.")] = 7860,
    password: Annotated[
        str, typer.Option(envvar="GROUNDUP_CHAT_PASSWORD", help="What raters must know.", show_default=False)
    ] = "",
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the likeliest tokens to draw from.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Most tokens of an answer.")] = 64,
) -> None:
    """Open the page on which people vote on pairs of answers; `groundup feedback` trains on their votes."""
    from flows import people

    people.chat(
        _project(), model or [], host=host, port=port, password=password, temperature=temperature, top_p=top_p,
        max_tokens=max_tokens, tell=typer.echo,
    )  # fmt: skip


@app.command()
def up() -> None:
    """Start servers, deployments, automations and a worker: runs can then be started from Prefect's page."""
    from deployments import supervisor

    for name, url in supervisor.up(_project(), lambda step: typer.echo(f"  {step}", err=True)).items():
        typer.echo(f"{name}: {url}")


@app.command()
def down() -> None:
    """Stop the project's worker and servers."""
    from deployments import servers

    stopped = servers.stop(_project())
    typer.echo(f"stopped {' and '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """What is wrong with this machine or workspace, and how to mend it; exit code 1 if something is."""
    from dataclasses import asdict

    from deployments.doctor import examine

    findings = list(examine(_project()))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for found in findings:
            remedy = f"  -> {found.remedy}" if found.remedy and found.state != "ok" else ""
            typer.echo(f"{found.state:8} {found.check:12} {found.text}{remedy}")
    raise typer.Exit(any(found.state == "wrong" for found in findings))


@app.command("crawl-check")
def crawl_check(
    url: Annotated[str, typer.Argument(help="The URL to look at.")],
    source: Annotated[str | None, typer.Option(help="Name of a web source in params.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What a crawl would do with a URL, without crawling: scope, address, robots.txt. Exit code 1: not allowed."""
    from flows import looking
    from tasks.workspace import Workspace

    found = looking.crawl_check(Workspace.at(_project()), url, source)
    typer.echo(json.dumps(found, indent=2) if as_json else looking.lines(found))
    raise typer.Exit(not found["allowed"])


@app.command()
def extract(
    target: Annotated[str, typer.Argument(help="A URL (taken from data/raw if it was crawled), or a file.")],
    rule: Annotated[str | None, typer.Option(help="A rule of rules/; without it the URL's host finds it.")] = None,
    url: Annotated[str | None, typer.Option(help="Where a file's page stands in the web.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What clean would take from a page: its text, its metadata, and what each engine would give."""
    from flows import looking
    from tasks.workspace import Workspace

    found = looking.extract(Workspace.at(_project()), target, rule, url)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        typer.echo(looking.tryout(found))


@app.command()
def status(
    stage: Annotated[str | None, typer.Argument(help="clean, together with --dropped.")] = None,
    dropped: Annotated[str | None, typer.Option(help="List what clean dropped for this reason, or all.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many of them.")] = None,
    name: Annotated[str | None, typer.Option("--run", help="An experiment's name.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Each stage: fresh or stale and why, when it ran, how long it took. With --dropped: what was dropped and why."""
    from flows import looking, running
    from llm_core.contract import BadInput
    from tasks.workspace import Workspace

    project = _project()
    space = Workspace.at(project / "runs" / name if name else project)
    if dropped is not None:
        if stage not in (None, "clean"):
            raise BadInput(f"status {stage} --dropped: only clean drops documents")
        for row in looking.dropped(space, None if dropped == "all" else dropped, limit):
            typer.echo(json.dumps(row, ensure_ascii=False) if as_json else looking.lines(row) + "\n")
        return
    rows = [row for row in running.status_rows(space) if stage in (None, row["stage"])]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        running.print_status(rows)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    model: Annotated[str, typer.Option(help="An alias of the registry, or a model's directory.")] = "champion",
    max_tokens: Annotated[int, typer.Option(min=1, max=4096)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 takes the likeliest token.")] = 0.0,
    continue_text: Annotated[bool, typer.Option("--continue", help="Continue the text instead of answering.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Let a model answer, or continue a text."""
    from flows import running

    typer.echo(running.generate(_project(), model, prompt, max_tokens, temperature, seed, continue_text=continue_text))


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="An alias of the registry, or a model's directory.")] = "champion",
    host: Annotated[str, typer.Option(help="Address to listen on; another than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: a free one.", show_default="8000, or a free one")
    ] = None,
    api_key: Annotated[
        str, typer.Option(envvar="GROUNDUP_API_KEY", help="What clients must send.", show_default=False)
    ] = "",
    name: Annotated[str, typer.Option(help="The model's name in the API.")] = "groundup",
    max_rows: Annotated[int, typer.Option(min=1, help="Answers drawn at once.")] = 32,
    max_queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; more get status 429.")] = 128,
    max_tokens: Annotated[int, typer.Option(min=0, help="Most tokens of an answer; 0: the context's.")] = 0,
    max_body: Annotated[int, typer.Option(min=1024, help="Most bytes of a request.")] = 1 << 20,
    request_seconds: Annotated[float, typer.Option(min=0.1, help="Longest time for an answer.")] = 300.0,
    receive_seconds: Annotated[float, typer.Option(min=0.1, help="Longest time for a header, and for a body.")] = 10.0,
    watch_seconds: Annotated[float, typer.Option(min=0, help="How often the registry is asked; 0: never.")] = 5.0,
) -> None:
    """Serve a model over an OpenAI-compatible HTTP API; SIGHUP or a new champion changes it without a pause."""
    from apps.serving.options import ServeOptions
    from flows import serving

    options = ServeOptions(
        host=host, port=port, api_key=api_key, name=name, max_rows=max_rows, max_queue=max_queue, max_tokens=max_tokens,
        max_body=max_body, request_seconds=request_seconds, receive_seconds=receive_seconds,
        watch_seconds=watch_seconds,
    )  # fmt: skip
    serving.serve(None if Path(model).is_dir() else _project(), model, options, typer.echo)


@app.command()
def accept(stage: str) -> None:
    """Keep a stage's product as it is, though its code or settings changed in a way known not to matter."""
    from flows import running

    running.accept(_project(), stage)
    typer.echo(f"{stage} is fresh as it stands")


@app.command()
def adopt(name: Annotated[str, typer.Argument(help="The experiment.")]) -> None:
    """Make an experiment's settings and products the main ones."""
    from tasks import experiments

    experiments.adopt(_project(), name)
    typer.echo(f"params.yaml and dvc.lock are now those of {name}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="main, or an experiment's name.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What differs between two runs (settings, data, code), and what came out of each."""
    from dataclasses import asdict

    from flows import running
    from tasks.compare import compare as compare_workspaces

    found = compare_workspaces(_project(), first, second)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    elif markdown:
        typer.echo(found.markdown(), nl=False)
    else:
        running.print_tables(found.tables())


@app.command()
def plan(
    hours: Annotated[float | None, typer.Option(help="Hours of training.")] = None,
    flops: Annotated[float | None, typer.Option(help="Floating-point operations.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Training tokens.")] = None,
    device: Annotated[
        str | None, typer.Option(help="A device of the table, for example H100; without it this machine is measured.")
    ] = None,
    apply: Annotated[str | None, typer.Option(help="Write the plan as presets/NAME.yaml.", metavar="NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What a budget buys: model size, tokens, batch, learning rate, time, memory, expected loss; with sources."""
    from flows import looking

    looking.plan(_project(), hours, flops, tokens, device, apply, as_json=as_json)


@app.command()
def scaling(
    minutes: Annotated[float, typer.Option(min=0.1, help="Training time of the ladder.")] = 5.0,
    plan_hours: Annotated[float, typer.Option(min=0.01, help="Hours of the plan that follows.")] = 1.0,
) -> None:
    """Train a ladder of small models, fit their scaling law, and plan by it."""
    from flows import running

    typer.echo(running.scaling(_project(), minutes, plan_hours).as_uri())


@app.command()
def sync() -> None:
    """Send to MLflow what could not be sent while a stage ran."""
    from flows import running

    sent = running.sync(_project())
    typer.echo(f"sent {len(sent)} run{'s' if len(sent) != 1 else ''}" if sent else "nothing was waiting")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The new directory.")],
    model: Annotated[str, typer.Option(help="An alias of the registry, or a model's directory.")] = "champion",
    form: Annotated[
        str, typer.Option("--format", help="hf (transformers, vLLM) or gguf-ready (llama.cpp's converter too).")
    ] = "hf",
) -> None:
    """Write a model for other programs: transformers, vLLM, llama.cpp."""
    from flows import releasing

    typer.echo(releasing.export(_project(), model, out, form))


@app.command()
def promote(as_json: Annotated[bool, typer.Option("--json", help="Print the whole verdict as JSON.")] = False) -> None:
    """Let the gate judge the newest scores now, as `groundup run` does at its end."""
    from flows import releasing

    typer.echo(releasing.promote(_project(), as_json=as_json))


@app.command()
def rollback() -> None:
    """Make the previous champion the champion again."""
    from flows import running

    typer.echo(running.rollback(_project()))


trusting.add_to(app, _project)


def main() -> None:
    """Entry point: bad input is one sentence and exit code 2; other failures are one sentence and exit code 1."""
    from llm_core.contract import BadInput

    try:
        app()
    except BadInput as error:
        _fail(str(error), 2)
    except Exception as error:
        if os.environ.get("GROUNDUP_DEBUG"):
            raise
        _fail(f"{type(error).__name__}: {error}" if type(error).__module__ == "builtins" else str(error), 1)


def _fail(text: str, code: int) -> None:
    print(f"groundup: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
