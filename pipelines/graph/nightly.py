"""A whole run as one graph: items, users, lists, checks, publish. The commands other than `nightly` run parts of it."""

from __future__ import annotations

from functools import partial

import apache_beam as beam

from unisono.pipelines.graph import items, lists, users
from unisono.pipelines.graph.outputs import Outputs
from unisono.pipelines.graph.unknown_items import name_unlike_ids
from unisono.pipelines.job.job import Job
from unisono.pipelines.job.people import PeoplePlan
from unisono.pipelines.job.plan import Plan, RunPlan
from unisono.transforms.privacy.forget import CountForgotten
from unisono.transforms.rank.ranking import ReweighUsers, VectorsOfItems
from unisono.transforms.store.dead_letters import SCHEMA
from unisono.transforms.store.publish import PublishRun, PublishSpec, WriteDeadLetters
from unisono.transforms.store.runs import FileRecord, Manifest, ReadShards, WriteShards, write_file
from unisono.transforms.users.popularity import CountLikes


def build(root: beam.Pipeline, plan: Plan) -> beam.PCollection:
    """Adds every step that the plan asks for, up to the publish. Returns a PCollection of the run's one Manifest."""
    run, people = plan.run, plan.people.people
    parts: list[Outputs] = []
    log = None
    if plan.log:
        parts.append(Outputs())
        log = users.read_log(root, run, plan.log, people, parts[-1])
    if plan.items:
        parts.append(items.build(root, run, plan.items, log.usable if log else None, plan.log))
    parts.append(_carry(root, run, plan.people, log))
    if plan.users and plan.log and log:
        made = _files(root, run.base, parts, "items")
        parts.append(
            users.build(root, run, plan.users, log=log, shards=plan.log.shards, people=people, items=made)
        )
    if plan.lists:
        to_rank, to_serve = (_files(root, run.base, parts, part) for part in ("items", "users"))
        known = log.known if log else None
        parts.append(lists.build(root, run, plan.lists, items=to_rank, users=to_serve, events=known))
    return _publish(root, plan, parts)


def _files(root: beam.Pipeline, base: Manifest | None, parts: list[Outputs], part: str) -> beam.PCollection:
    """The FileRecords of a part: those of this run if it makes the part, otherwise those of the published run."""
    for made in parts:
        if part in made.files:
            return made.files[part]
    return root | f"Published{part.capitalize()}Files" >> beam.Create(base.part(part) if base else [])


def _publish(root: beam.Pipeline, plan: Plan, parts: list[Outputs]) -> beam.PCollection:
    """Adds the steps that gather what the parts made, check it and publish it."""
    run, people = plan.run, plan.people
    files = [f for part in parts for f in part.files.values()]
    counts = [c for part in parts for c in part.counts]
    dead = [d for part in parts for d in part.dead]
    forgotten = tuple(f for part in parts for f in part.forgotten)
    if forgotten:
        counts.append(forgotten | "AllForgotten" >> beam.Flatten() | "CountForgotten" >> CountForgotten())
    dead.append(root | "NoLetters" >> beam.Create([SCHEMA.empty_table()]))  # Flatten needs at least one input
    letters = (
        tuple(dead)
        | "AllDeadLetters" >> beam.Flatten()
        | "DeadLetters" >> WriteDeadLetters(run.store, run.run_id, run.shards)
    )
    config = root | "Config" >> beam.Create([run.job.to_yaml()]) | "WriteConfig" >> beam.Map(_write_config, run)
    said = people.people.statement(run.base.privacy if run.base else None, plan.users is not None)
    at = run.job.limits
    spec = PublishSpec(
        plan.items is not None,
        at.max_dead_letter_fraction,
        people.standing,
        said,
        max_unknown_item_fraction=at.max_unknown_item_fraction,
        name_unlike_ids=partial(name_unlike_ids, store=run.store, log=plan.log.interactions) if plan.log else None,
    )
    totals = (*counts, letters["counts"]) | "AllCounts" >> beam.Flatten()
    publish = PublishRun(run.store, run.run_id, spec, run.created, totals)
    return (*files, letters["files"], config) | "AllFiles" >> beam.Flatten() | "Publish" >> publish


def _popularity(job: Job, log: users.Log | None) -> beam.PCollection | None:
    if log is None or job.privacy.noise:
        return None
    return log.usable | "Recount" >> CountLikes(job.ranks.liked_above or 0.0, job.ranks.popularity_half_life_days)


def _carry(root: beam.Pipeline, run: RunPlan, people: PeoplePlan, log: users.Log | None) -> Outputs:
    """Writes published parts anew: people without the forgotten ones, people and items with new ranking vectors."""
    out = Outputs()
    for part in sorted({f.part for f in people.carried}):
        records = [f for f in people.carried if f.part == part]
        name = part.capitalize()
        shards = root | f"Published{name}ToCarry" >> beam.Create(records) | f"Carry{name}" >> ReadShards(run.store)
        if part == "items":
            job = run.job
            left = shards | "Rerank" >> VectorsOfItems(job.ranks, job.late_modalities, _popularity(job, log))
        else:
            left = users.forget_users(shards, people.people, out, f"Forget{name}")
        if part == "users" and run.reweigh is not None:
            left = left | "Reweigh" >> ReweighUsers(run.job.ranks, run.reweigh)
        write = WriteShards(run.store, run.run_id, part, len(records), {})
        out.files[part] = left | f"WriteCarried{name}" >> write
    return out


def _write_config(text: str, run: RunPlan) -> FileRecord:
    return write_file(run.store, "config", f"runs/{run.run_id}/config.yaml", text.encode())
