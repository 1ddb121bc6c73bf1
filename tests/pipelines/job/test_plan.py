"""The plan: what each command will do, how many shards there are, and what is refused before any work."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import Run
from unisono.pipelines.job.items import MOST_ROWS_A_SHARD, ROWS_A_SHARD, choose_dim, default_shards, power_of_two
from unisono.pipelines.job.job import Job
from unisono.pipelines.job.load import load_job
from unisono.pipelines.job.plan import Plan, default_run_id, plan_run
from unisono.transforms.base.errors import JobError
from unisono.transforms.store.runs import FileRecord, Manifest

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
MakeJob = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path) -> MakeJob:
    """Writes a catalogue of three items, a log of three events and a job file; further sections replace or add."""
    pq.write_table(
        pa.table({"id": ["a", "b", "c"], "title": ["one", "two", "three"], "shown": [True, False, None]}),
        tmp_path / "catalog.parquet",
    )
    pq.write_table(
        pa.table({"u": ["x", "y", "x"], "i": ["a", "b", "c"], "t": pa.array([NOON] * 3, pa.timestamp("us", "UTC"))}),
        tmp_path / "log.parquet",
    )

    def make(**sections: object) -> Job:
        catalog = {"path": "catalog.parquet", "id": "id", "text": "title"}
        body: dict[str, object] = {"store": "store", "catalog": catalog}
        log = {"path": "log.parquet", "user": "u", "item": "i", "time": "t"}
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in (body | {"interactions": log} | sections).items() if v}))
        return load_job(str(path))

    return make


def published(run: Run, *, items: bool, users: bool, recommend: bool, **changes: object) -> Plan:
    """Plans a second run on the store of a finished one."""
    body = yaml.safe_load(run.job.read_text()) | changes
    path = run.job.with_name("second.yaml")
    path.write_text(yaml.safe_dump(body))
    return plan_run(load_job(str(path)), "second", items=items, users=users, recommend=recommend)


# --- parts -------------------------------------------------------------------------------------------------


def test_each_command_has_its_parts(job: MakeJob, run: Run) -> None:
    nightly = plan_run(job(ranking={"k": 2}), "r1", items=True, users=True, recommend=True)
    assert nightly.items
    assert nightly.log
    assert nightly.users
    assert nightly.lists
    assert nightly.items.catalog.rows == 3
    assert nightly.log.interactions.rows == 3
    assert nightly.people.standing == ()
    embed = plan_run(job(interactions=None), "r2", items=True, users=False)
    assert (embed.log, embed.users, embed.lists) == (None, None, None)
    profile = published(run, items=False, users=True, recommend=False)
    assert profile.items is None
    assert profile.users


ITEMS_PARTS = ("embeddings", "space", "items", "quality", "factors", "ranking")


def test_a_run_takes_over_the_published_parts_it_does_not_make(run: Run) -> None:
    profile = published(run, items=False, users=True, recommend=False)
    of_items = {f.path for f in run.manifest.files if f.part in ITEMS_PARTS}
    assert {f.path for f in profile.people.standing} == of_items
    recommend = published(run, items=False, users=False, recommend=True, ranking={"k": 5})
    assert {f.path for f in recommend.people.standing} == of_items | {f.path for f in run.manifest.part("users")}
    assert recommend.lists
    assert recommend.lists.shards == len(run.manifest.part("users"))
    embed = published(run, items=True, users=False, recommend=False)
    assert embed.people.standing == ()
    assert embed.run.base == run.manifest


def test_forgotten_people_are_written_anew(run: Run, tmp_path: Path) -> None:
    user = run.part("users")["user_id"][0].as_py()
    pq.write_table(pa.table({"user_id": [user]}), tmp_path / "forget.parquet")
    privacy = {"forget": str(tmp_path / "forget.parquet")}
    plan = published(run, items=False, users=False, recommend=True, ranking={"k": 5}, privacy=privacy)
    assert {f.path for f in plan.people.carried} == {f.path for f in run.manifest.part("users")}
    assert not any(f.part == "users" for f in plan.people.standing)


def test_ranking_reads_the_log_only_if_a_setting_needs_it(run: Run) -> None:
    plain = published(run, items=False, users=False, recommend=True, ranking={"exclude_seen": False})
    assert plain.log is None
    seen = published(run, items=False, users=False, recommend=True, ranking={"exclude_seen": True})
    assert seen.log
    assert seen.log.shards == len(run.manifest.part("users"))


def test_late_fusion_needs_profiles_that_were_made_for_it(run: Run) -> None:
    with pytest.raises(JobError, match=r"ranking\.fusion: late needs a vector .* run `unisono profile`"):
        published(run, items=False, users=False, recommend=True, ranking={"fusion": "late"})


def test_the_progress_view_is_told_the_rows(job: MakeJob) -> None:
    totals = plan_run(job(), "r1", items=True, users=True).stage_totals
    assert totals["read"] == totals["encode-text"] == totals["write-items"] == 3
    assert totals["profiles"] == totals["interactions"] == 3


# --- shards ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "shards"),
    [(0, 1), (1, 1), (ROWS_A_SHARD, 1), (ROWS_A_SHARD + 1, 2), (3 * ROWS_A_SHARD, 4), (1_000_000, 256)],
)
def test_shards_are_a_power_of_two_of_bounded_size(rows: int, shards: int) -> None:
    assert power_of_two(rows, ROWS_A_SHARD) == shards
    assert default_shards(rows, None) == shards
    assert rows <= shards * ROWS_A_SHARD


def test_a_grown_catalogue_keeps_its_shards_for_a_while() -> None:
    records = tuple(FileRecord("embeddings", f"e{i}", i, 1, 1, "") for i in range(4))
    base = Manifest("r1", "", records)
    assert default_shards(1, base) == 4
    assert default_shards(4 * MOST_ROWS_A_SHARD, base) == 4
    assert default_shards(4 * MOST_ROWS_A_SHARD + 1, base) == 32


def test_the_job_file_may_say_how_many_shards(job: MakeJob) -> None:
    plan = plan_run(job(shards=3), "r1", items=True, users=True)
    assert plan.items
    assert plan.log
    assert (plan.run.shards, plan.items.shards, plan.log.shards) == (3, 3, 3)


def test_the_default_run_id_is_the_time() -> None:
    assert dt.datetime.strptime(default_run_id(), "%Y%m%dT%H%M%S")


# --- refusals ----------------------------------------------------------------------------------------------

REFUSED = {
    "no log": ({"interactions": None}, {"users": True}, "interactions: missing"),
    "no ranking": ({}, {"users": True, "recommend": True}, "ranking: missing"),
    "weight of a modality that is not there": (
        {"ranking": {"fusion": "late", "weights": {"image": 2}}}, {"users": True, "recommend": True},
        "ranking.weights: image is no modality of the space; it has text",
    ),
    "filter that is no boolean": (
        {"ranking": {"filter": "title"}}, {"users": True, "recommend": True}, "ranking.filter: column 'title'",
    ),
    "dim over what there can be": ({"space": {"dim": 100_000}}, {}, "space.dim: 100000 is over"),
    "cca of one modality": ({"space": {"method": "cca"}}, {}, "space.method: cca aligns two modalities"),
    "hub that is not there": ({"space": {"method": "ridge", "hub": "image"}}, {}, "space.hub: image is no modality"),
    "output longer than the space": (
        {"space": {"dim": 8}, "output": {"dim": 9}}, {}, "output.dim: 9 is over space.dim, 8",
    ),
    "no such key": ({"privacy": {"pseudonyms": {"key_env": "UNISONO_NO_SUCH_KEY"}}}, {"users": True}, "privacy."),
}  # fmt: skip


@pytest.mark.parametrize(("sections", "parts", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    job: MakeJob, tmp_path: Path, sections: dict, parts: dict, says: str
) -> None:
    with pytest.raises(JobError) as e:
        plan_run(job(**sections), "r1", **{"items": True, "users": False} | parts)
    assert says in str(e.value)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "store").exists()


def test_users_and_lists_need_a_published_run(job: MakeJob) -> None:
    with pytest.raises(JobError, match="has no published run"):
        plan_run(job(), "r1", items=False, users=True)
    with pytest.raises(JobError, match="has no published run"):
        plan_run(job(ranking={"k": 3}), "r1", items=False, users=False, recommend=True)


def test_item_ids_must_be_of_one_kind(job: MakeJob, tmp_path: Path) -> None:
    at = job()
    pq.write_table(
        pa.table({"u": ["x"], "i": [7], "t": pa.array([NOON], pa.timestamp("us", "UTC"))}), tmp_path / "log.parquet"
    )
    with pytest.raises(JobError, match=r"interactions\.item: column 'i' holds int64, the catalogue's ids are string"):
        plan_run(at, "r1", items=True, users=True)


def test_the_number_of_axes_is_128_or_what_the_embeddings_allow(job: MakeJob) -> None:
    assert choose_dim(job(), {"text": 512, "image": 300}) == 128
    assert choose_dim(job(), {"text": 512, "image": 30}) == 30
    assert choose_dim(job(space={"dim": 7}), {"text": 512, "image": 30}) == 7
