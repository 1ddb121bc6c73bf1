"""A whole run as one graph: embed, profile, recommend, check, publish. Each command alone is a part of it."""

from __future__ import annotations

import apache_beam as beam

from unisono.pipelines.graph import embed, profile, recommend
from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.job.plan import Plan
from unisono.transforms.privacy.forget import CountForgotten
from unisono.transforms.store.dead_letters import SCHEMA
from unisono.transforms.store.publish import PublishRun, PublishSpec, WriteDeadLetters
from unisono.transforms.store.runs import FileRecord, ReadShards, WriteShards, write_file


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
    parts.append(_carry(root, plan))
    users = users or parts[-1].files.get("users")
    if plan.recommend:
        parts.append(recommend.build(root, plan, items, users, log.known if log else None))
    files = [f for part in parts for f in part.files.values()]
    counts = [c for part in parts for c in part.counts]
    dead = [d for part in parts for d in part.dead]
    forgotten = tuple(f for part in parts for f in part.forgotten)
    if forgotten:
        counts.append(forgotten | "AllForgotten" >> beam.Flatten() | "CountForgotten" >> CountForgotten())
    dead.append(root | "NoLetters" >> beam.Create([SCHEMA.empty_table()]))  # a part may have none to give
    letters = (
        tuple(dead)
        | "AllDeadLetters" >> beam.Flatten()
        | "DeadLetters" >> WriteDeadLetters(plan.store, plan.run_id, plan.shards)
    )
    config = root | "Config" >> beam.Create([plan.job.to_yaml()]) | "WriteConfig" >> beam.Map(_write_config, plan)
    said = plan.people.statement(plan.base.privacy if plan.base else None, plan.users)
    limit = plan.job.limits.max_dead_letter_fraction
    spec = PublishSpec(plan.catalog is not None, limit, plan.standing, said)
    totals = (*counts, letters["counts"]) | "AllCounts" >> beam.Flatten()
    publish = PublishRun(plan.store, plan.run_id, spec, plan.created, totals)
    return (*files, letters["files"], config) | "AllFiles" >> beam.Flatten() | "Publish" >> publish


def _carry(root: beam.Pipeline, plan: Plan) -> Outputs:
    """Writes the published people anew, without those who are forgotten."""
    out = Outputs()
    for part in sorted({f.part for f in plan.carried}):
        records = [f for f in plan.carried if f.part == part]
        name = part.capitalize()
        shards = root | f"Published{name}ToCarry" >> beam.Create(records) | f"Carry{name}" >> ReadShards(plan.store)
        left = profile.forget_users(shards, plan, out, f"Forget{name}")
        write = WriteShards(plan.store, plan.run_id, part, len(records), {})
        out.files[part] = left | f"WriteCarried{name}" >> write
    return out


def _write_config(text: str, plan: Plan) -> FileRecord:
    return write_file(plan.store, "config", f"runs/{plan.run_id}/config.yaml", text.encode())
