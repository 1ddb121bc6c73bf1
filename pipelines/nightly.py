"""A whole run as one graph: embed, profile, recommend, check, publish. Each command alone is a part of it."""

from __future__ import annotations

import apache_beam as beam

from pipelines import embed, profile, recommend
from pipelines.embed import Outputs
from pipelines.plan import Plan
from transforms.dead_letters import SCHEMA
from transforms.publish import PublishRun, PublishSpec, WriteDeadLetters
from transforms.store import FileRecord, write_file


def build(root: beam.Pipeline, plan: Plan) -> beam.PCollection:
    """Adds every step that the plan asks for, up to the publish; gives the run's one Manifest."""
    parts: list[Outputs] = []
    items = users = log = None
    if plan.interactions:
        parts.append(Outputs())
        log = profile.read_log(root, plan, parts[-1])
    if plan.catalog:
        parts.append(embed.build(root, plan, log.known if log else None))
        items = parts[-1].files["items"]
    if plan.users:
        assert log is not None
        parts.append(profile.build(root, plan, log, after=items))
        users = parts[-1].files["users"]
    if plan.recommend:
        parts.append(recommend.build(root, plan, items, users, log.known if log else None))
    files = [f for part in parts for f in part.files.values()]
    counts = [c for part in parts for c in part.counts]
    dead = [d for part in parts for d in part.dead]
    dead.append(root | "NoLetters" >> beam.Create([SCHEMA.empty_table()]))  # a part may have none to give
    letters = (
        tuple(dead)
        | "AllDeadLetters" >> beam.Flatten()
        | "DeadLetters" >> WriteDeadLetters(plan.store, plan.run_id, plan.shards)
    )
    config = root | "Config" >> beam.Create([plan.job.to_yaml()]) | "WriteConfig" >> beam.Map(_write_config, plan)
    spec = PublishSpec(plan.catalog is not None, plan.job.limits.max_dead_letter_fraction, _standing(plan))
    totals = (*counts, letters["counts"]) | "AllCounts" >> beam.Flatten()
    publish = PublishRun(plan.store, plan.run_id, spec, plan.created, totals)
    return (*files, letters["files"], config) | "AllFiles" >> beam.Flatten() | "Publish" >> publish


def _standing(plan: Plan) -> tuple[FileRecord, ...]:
    """The published run's files that this one stands on, and leaves where they are.

    A run without a catalogue stands on the items; one that makes neither items nor users, on the users too. The
    sums of incremental profiles are yesterday's logs: a run that does not add to them hands them on.
    """
    kept: set[str] = set() if plan.catalog else {"embeddings", "behaviour", "space", "items", "quality"}
    if not plan.users:
        kept |= set() if plan.catalog else {"users"}
        kept |= {"state", "folded"} if plan.job.profiles.incremental else set()
    return tuple(f for f in plan.base.files if f.part in kept) if plan.base else ()


def _write_config(text: str, plan: Plan) -> FileRecord:
    return write_file(plan.store, "config", f"runs/{plan.run_id}/config.yaml", text.encode())
