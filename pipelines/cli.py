"""The command `unisono`."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from transforms.errors import JobError

app = typer.Typer(
    help="Multimodal item vectors and user profiles for recommenders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Config = Annotated[str, typer.Option("--config", help="The job file: a path or gs://.")]
RunId = Annotated[str | None, typer.Option("--run-id", help="Names the run; by default the time of launch.")]


def _run(
    config: str, run_id: str | None, argv: list[str], *, items: bool, users: bool, recommend: bool = False
) -> None:
    # Imported here: `--help` and a mistyped option should answer at once.
    from pipelines import nightly
    from pipelines.config import load_job
    from pipelines.launch import launch
    from pipelines.plan import plan_run
    from pipelines.summary import print_summary

    started = time.monotonic()
    plan = plan_run(load_job(config), run_id, items=items, users=users, recommend=recommend)
    launch(lambda root: nightly.build(root, plan), argv, plan.stage_totals)
    manifest = plan.store.manifest(plan.run_id)
    if manifest is None:  # a submitted job whose launcher does not wait
        Console(stderr=True).print(f"submitted run {plan.run_id}")
        return
    print_summary(plan.store, manifest, time.monotonic() - started)


@app.command(context_settings=_PASS_ON)
def embed(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Encode the catalogue, fit the joint space, write item vectors."""
    _run(config, run_id, ctx.args, items=True, users=False)


@app.command(context_settings=_PASS_ON)
def profile(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Build user profiles from the interaction log and the published items."""
    _run(config, run_id, ctx.args, items=False, users=True)


@app.command(context_settings=_PASS_ON)
def nightly(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """The scheduled job: embed, profile and recommend (as the job file has the keys), under one run id."""
    from pipelines.config import load_job

    job = load_job(config)
    users = job.interactions is not None
    _run(config, run_id, ctx.args, items=True, users=users, recommend=users and job.ranking is not None)


@app.command(context_settings=_PASS_ON)
def recommend(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Rank the published items for the published users."""
    _run(config, run_id, ctx.args, items=False, users=False, recommend=True)


@app.command()
def search(
    store: Annotated[str, typer.Option(help="The store: a directory or gs:// prefix.")],
    text: Annotated[str | None, typer.Option(help="Words to look for.")] = None,
    image: Annotated[str | None, typer.Option(help="An image file.")] = None,
    audio: Annotated[str | None, typer.Option(help="An audio file.")] = None,
    item: Annotated[str | None, typer.Option(help="An item id.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """Find the items of the published run nearest to a text, a picture, a sound or an item."""
    from pipelines import search as searching
    from transforms.store import Store

    at = store if "://" in store else os.path.abspath(store)
    hits = searching.search(Store(at), text=text, image=image, audio=audio, item=item, k=k)
    if as_json:
        print(json.dumps([asdict(h) for h in hits], ensure_ascii=False))
        return
    table = Table("rank", "score", "id", "title", "modalities", box=None, padding=(0, 2))
    for h in hits:
        table.add_row(str(h.rank), f"{h.score:.3f}", str(h.item_id), h.title or "", " ".join(h.modalities))
    Console().print(table)


@app.command()
def explain(
    store: Annotated[str, typer.Option(help="The store: a directory or gs:// prefix.")],
    user: Annotated[str, typer.Option(help="A user id.")],
    item: Annotated[str, typer.Option(help="An item id.")],
    events: Annotated[int, typer.Option(min=0, help="How many events to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with every event, for programs.")] = False,
) -> None:
    """Split the score of a user and an item into modalities, and into the user's events."""
    from pipelines import explain as explaining
    from transforms.store import Store

    found = explaining.explain(Store(store if "://" in store else os.path.abspath(store)), user, item)
    if as_json:
        print(json.dumps(asdict(found), ensure_ascii=False))
        return
    table = Table("part", "of", box=None, padding=(0, 2), title=f"score {found.score:.4f} by {found.query}")
    for modality, part in found.modalities:
        table.add_row(f"{part:+.4f}", modality)
    table.add_section()
    for item_id, when, weight, part in found.events[:events]:
        table.add_row(f"{part:+.4f}", f"{item_id} {when} weight {weight:g}")
    if more := found.events[events:]:
        table.add_row(f"{sum(part for *_, part in more):+.4f}", f"{len(more)} more events")
    table.add_row(f"{found.rest:+.4f}", "no event of the log (what everybody likes, older logs, rounding)")
    Console().print(table)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Where the shop and the store go.")] = "out/demo",
    items: Annotated[int, typer.Option(min=50, help="How many items the synthetic shop has.")] = 2000,
) -> None:
    """Make a synthetic shop, run the whole job on it, and show what came out."""
    from pipelines.demo import run_demo

    run_demo(os.path.abspath(out), items)


def main() -> None:
    """Runs the command: 0 done, 1 the job is wrong (one line says how), 2 the command line is wrong."""
    warnings.filterwarnings("ignore", module="apache_beam")
    try:
        app(standalone_mode=True)
    except JobError as e:
        print(f"unisono: error: {e}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
