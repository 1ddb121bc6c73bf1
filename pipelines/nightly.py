"""A whole run as one graph: embed, profile, check, publish. `embed` and `profile` alone are its parts."""

from __future__ import annotations

import apache_beam as beam

from pipelines import embed, profile
from pipelines.plan import Plan
from transforms.publish import PublishRun, PublishSpec, WriteDeadLetters
from transforms.store import FileRecord, write_file


def build(root: beam.Pipeline, plan: Plan) -> beam.PCollection:
    """Adds every step that the plan asks for, up to the publish; gives the run's one Manifest."""
    files: list[beam.PCollection] = []
    counts: list[beam.PCollection] = []
    dead: list[beam.PCollection] = []
    items = None
    if plan.catalog:
        made = embed.build(root, plan)
        items = made.files["items"]
        files, counts, dead = list(made.files.values()), made.counts, made.dead
    if plan.interactions:
        made = profile.build(root, plan, after=items)
        files, counts, dead = [*files, *made.files.values()], counts + made.counts, dead + made.dead
    letters = (
        tuple(dead)
        | "AllDeadLetters" >> beam.Flatten()
        | "DeadLetters" >> WriteDeadLetters(plan.store, plan.run_id, plan.shards)
    )
    config = root | "Config" >> beam.Create([plan.job.to_yaml()]) | "WriteConfig" >> beam.Map(_write_config, plan)
    # A run of profiles alone stands on the published items, and leaves them where they are.
    inherited = () if plan.catalog or not plan.base else _standing(plan.base.files)
    spec = PublishSpec(plan.catalog is not None, plan.job.limits.max_dead_letter_fraction, inherited)
    totals = (*counts, letters["counts"]) | "AllCounts" >> beam.Flatten()
    publish = PublishRun(plan.store, plan.run_id, spec, plan.created, totals)
    return (*files, letters["files"], config) | "AllFiles" >> beam.Flatten() | "Publish" >> publish


def _standing(files: tuple[FileRecord, ...]) -> tuple[FileRecord, ...]:
    return tuple(f for f in files if f.part in ("embeddings", "space", "items", "quality"))


def _write_config(text: str, plan: Plan) -> FileRecord:
    return write_file(plan.store, "config", f"runs/{plan.run_id}/config.yaml", text.encode())
