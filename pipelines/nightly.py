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
    items = users = events = None
    if plan.users or (plan.catalog and plan.job.behaviour):
        parts.append(Outputs())
        events = profile.read_events(root, plan, parts[-1])
    if plan.catalog:
        parts.append(embed.build(root, plan, events))
        items = parts[-1].files["items"]
    if plan.users:
        assert events is not None
        parts.append(profile.build(root, plan, events, after=items))
        users = parts[-1].files["users"]
    if plan.recommend:
        parts.append(recommend.build(root, plan, items, users, events))
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
    # A run without a catalogue stands on the published items (and users), and leaves them where they are.
    inherited = () if plan.catalog or not plan.base else _standing(plan.base.files, plan)
    spec = PublishSpec(plan.catalog is not None, plan.job.limits.max_dead_letter_fraction, inherited)
    totals = (*counts, letters["counts"]) | "AllCounts" >> beam.Flatten()
    publish = PublishRun(plan.store, plan.run_id, spec, plan.created, totals)
    return (*files, letters["files"], config) | "AllFiles" >> beam.Flatten() | "Publish" >> publish


def _standing(files: tuple[FileRecord, ...], plan: Plan) -> tuple[FileRecord, ...]:
    kept = {"embeddings", "behaviour", "space", "items"} | (set() if plan.users else {"users", "state", "folded"})
    return tuple(f for f in files if f.part in kept)


def _write_config(text: str, plan: Plan) -> FileRecord:
    return write_file(plan.store, "config", f"runs/{plan.run_id}/config.yaml", text.encode())
