"""Commands that say where a model came from, take something out of it, make it again, and clear what is old away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer, project: Callable[[], Path]) -> None:
    """Add lineage, forget, reproduce and gc to the command; `project` finds the main workspace."""

    @app.command()
    def lineage(
        target: Annotated[
            str,
            typer.Argument(
                help="A model or product, an alias, an MLflow run, an experiment, a URL, a site, a document."
            ),
        ],
        as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    ) -> None:
        """From a model back to its URLs, licences and votes; from a URL to every model that saw it."""
        from flows.tracing import table_of
        from tasks.lineage import lineage
        from tasks.workspace import Workspace

        found = lineage(Workspace.at(project()), target)
        print(json.dumps(found, indent=2) if as_json else "\n".join(table_of(found)))

    @app.command()
    def forget(
        target: Annotated[
            str | None, typer.Argument(help="A URL, a host (all below it too) or a document's id.")
        ] = None,
        purge: Annotated[
            bool, typer.Option("--purge", help="Remove it now from crawl stores, DVC cache and workspaces.")
        ] = False,
        check: Annotated[
            bool, typer.Option("--check", help="Decode all shards and search them; exit code 1 if one holds any.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    ) -> None:
        """Never learn this again: list it in forget.txt, name the models that learned it; the next run is without."""
        from flows import tracing

        raise typer.Exit(tracing.forget(project(), target, purge=purge, check=check, as_json=as_json, tell=typer.echo))

    @app.command()
    def reproduce(
        run: Annotated[str, typer.Argument(help="An MLflow run, a product or its digest, an alias, an experiment.")],
        only: Annotated[bool, typer.Option("--only", help="Its product alone, from the inputs it had.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    ) -> None:
        """Build a past run again from its commit, settings and data; exit code 1 if a product is not byte-identical."""
        from flows import tracing

        raise typer.Exit(tracing.reproduce(project(), run, only=only, as_json=as_json, tell=typer.echo))

    @app.command()
    def gc(
        days: Annotated[float, typer.Option(min=0.0, help="What is younger stays, whatever it is.")] = 14.0,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    ) -> None:
        """Remove old experiments and products; what is checked out and what made champion and previous stays."""
        from flows import tracing

        typer.echo(tracing.collect(project(), days, dry_run=dry_run, as_json=as_json))
