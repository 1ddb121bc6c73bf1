"""`unisono tune`: against the steps of a real run, on logs where a setting is known to matter, killed and resumed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from unisono.pipelines.ask.hidden import read_hidden
from unisono.pipelines.ask.ranking_case import Rules, lay_out
from unisono.pipelines.ask.ranking_lists import serve
from unisono.pipelines.ask.trial import build_items, read_embeddings, read_events
from unisono.pipelines.cli import app
from unisono.pipelines.job.job import Job
from unisono.pipelines.job.load import load_job
from unisono.pipelines.launch import run_job
from unisono.pipelines.tune.bench import Bench
from unisono.pipelines.tune.cuts import Catalogue, Cut, make_cuts
from unisono.pipelines.tune.search import Yardstick
from unisono.pipelines.tune.settings import GRIDS, KEYS, points_to_try, settings_of, spec_of
from unisono.pipelines.tune.tune import Tuned, tune, tune_events
from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.rank_metrics import bootstrap_interval, measure_users
from unisono.transforms.measure.splits import Split

GROUPS, ITEMS, USERS, NEW = 5, 100, 110, 10
WORDS = ["river stone water", "engine wheel oil", "velvet silk thread", "bread salt oven", "paper ink pen"]
START, HOUR = 1_700_000_000, 3600


def write_shop(root: Path) -> Path:
    """Users who turn to another group of items after every eight events, and items that appear late."""
    rng = np.random.default_rng(0)
    ids = [f"i{i:03d}" for i in range(ITEMS)]
    text = [f"{WORDS[i % GROUPS]} {rng.choice(WORDS[i % GROUPS].split())} no {i}" for i in range(ITEMS)]
    shown = np.arange(ITEMS) % 17 != 3
    pq.write_table(pa.table({"id": ids, "title": text, "shown": shown}), root / "catalog.parquet")
    rows = []
    for user in range(USERS):
        at = np.sort(rng.integers(0, 100 * 24, 40))
        for n, hour in enumerate(at):
            group = (user + n // 8 * (1 + user % 3)) % GROUPS
            here = np.arange(group, ITEMS if hour > 60 * 24 else ITEMS - NEW, GROUPS)
            rows.append(
                (
                    f"u{user}",
                    ids[rng.choice(here)],
                    START + int(hour) * HOUR,
                    rng.choice(["like", "skip"], p=[0.9, 0.1]),
                )
            )
    log = pa.table(
        {name: pa.array(x) for name, x in zip(("user", "item", "at", "what"), zip(*rows, strict=True), strict=True)}
    )
    pq.write_table(log, root / "log.parquet")
    job = {
        "store": "store",
        "catalog": {"path": "catalog.parquet", "id": "id", "title": "title", "text": "title"},
        "encoders": {"text": {"model": "lite"}},
        "interactions": {
            "path": "log.parquet", "user": "user", "item": "item", "time": "at", "time_unit": "s", "event": "what",
            "weights": {"like": 1, "skip": -1},
        },
        "profiles": {"half_life_days": None, "min_events": 3, "session_minutes": 60},
        "ranking": {"k": 10, "filter": "shown", "recent": 0, "caution": 0.1, "factors": 16},
    }  # fmt: skip
    (root / "job.yaml").write_text("# the shop's own words\n" + yaml.safe_dump(job))
    return root / "job.yaml"


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_shop(tmp_path_factory.mktemp("tuned"))
    run_job(str(path), "whole", [], items=True, users=False)
    return path


@pytest.fixture(scope="module")
def job(job_file: Path) -> Job:
    return load_job(str(job_file))


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module", autouse=True)
def few_values() -> Iterator[None]:
    """All settings, with few values: a full search takes a minute."""
    values: dict[str, tuple[Any, ...]] = {
        "ranking.recent": (0.0, 3.0),
        "ranking.trend": (0.0, 4.0),
        "ranking.content_users": (0.0,),
        "ranking.factors": (8,),
    }
    few = [replace(g, values={k: values.get(k, ()) for k in g.keys}) for g in GRIDS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unisono.pipelines.tune.tune.GRIDS", few)
        yield


@pytest.fixture(scope="module")
def found(job: Job) -> Tuned:
    return tune(job, minutes=60, console=quiet())


# --- cuts and scores ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cuts(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, list[Cut]]:
    events, _ = read_events(job)
    home = str(tmp_path_factory.mktemp("home"))
    catalogue = Catalogue.of(job, read_embeddings(job.store_at), read_hidden(job), home)
    return catalogue, make_cuts(catalogue, events, job)


def test_cuts_by_pandas(job_file: Path, cuts: tuple[Catalogue, list[Cut]]) -> None:
    log = pq.read_table(job_file.parent / "log.parquet").to_pandas()
    catalogue, made = cuts
    assert [cut.kind for cut in made] == ["time"] * 6 + ["last"] * 3
    ascending = np.sort(log["at"])
    ids = np.array(catalogue.ids.to_pylist())
    shown = {i for n, i in enumerate(ids) if n % 17 != 3}
    for cut, start in zip(made, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), strict=False):
        begin = ascending[round(start * len(log))]
        end = ascending[round((start + 0.2) * len(log))] if start < 0.8 else np.inf
        before, rest = log[log["at"] < begin], log[(log["at"] >= begin) & (log["at"] < end)]
        assert cut.train.num_rows == len(before)
        seen, people = set(zip(before.user, before["item"], strict=True)), set(before.user)
        total = rest.assign(w=np.where(rest.what == "like", 1, -1)).groupby(["user", "item"]).w.sum()
        wanted = {p for p, w in total.items() if w > 0 and p not in seen and p[1] in shown and p[0] in people}
        users = np.array(cut.users.to_pylist())
        assert set(zip(users[cut.relevant[0]], ids[cut.relevant[1]], strict=True)) == wanted
        measured = set(users)
        assert measured == {u for u, _ in wanted}
        assert set(zip(users[cut.seen[0]], ids[cut.seen[1]], strict=True)) == {p for p in seen if p[0] in measured}
    end = made[6]
    held = dict(zip(end.users.take(end.relevant[0]).to_pylist(), ids[end.relevant[1]], strict=True))
    for user, events in log.groupby("user"):
        likes = events[events.what == "like"]
        last = likes[likes["at"] == likes["at"].max()]
        if len(last) > 1:
            continue  # a hash decides
        item, known = last["item"].item(), set(events[events["at"] < last["at"].item()]["item"])
        assert held.get(user) == (item if item in shown - known else None)


CHANGES: list[dict[str, Any]] = [
    {},
    {"ranking.recent": 3.0, "ranking.trend": 4.0, "ranking.recent_half_life": 2.0, "ranking.factors": 8},
    {"profiles.half_life_days": 20.0, "ranking.content_users": 50.0, "ranking.cold_exposure": 0.3},
    {"ranking.popularity_half_life_days": 3.0, "ranking.regularization": 0.05, "ranking.unobserved": 0.2},
]


@pytest.mark.parametrize("number", [1, 5, 6])
def test_scores_are_those_of_a_real_run(job: Job, cuts: tuple[Catalogue, list[Cut]], number: int) -> None:
    catalogue, made = cuts
    cut = made[number]
    bench = Bench(catalogue, cut, number, job)
    users = cut.users
    held = pa.table({"user_id": users.take(cut.relevant[0]), "item_id": catalogue.ids.take(cut.relevant[1])})
    held = held.sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    rules = Rules(job.usable, read_hidden(job))
    case = lay_out(read_embeddings(job.store_at), Split(cut.train, held), {"split": "own"}, rules=rules)
    assert case.new.any() == (number == 1)
    place = pc.index_in(users, value_set=case.who).to_numpy()
    for changes in CHANGES:
        spec = spec_of(job, {**settings_of(job, ageing=True), **changes})
        other = job.model_copy(update={"ranking": spec.ranking, "profiles": spec.profiles})
        items = build_items(other, case.embeddings, case.train, pa.table({"item_id": rules.hidden}))
        lists = serve(other, case, items)
        theirs = measure_users(lists.every, case.relevant, case.items, [10])["ndcg@10"]
        np.testing.assert_allclose(bench.ndcg(spec), theirs[place], atol=1e-9, err_msg=str(changes))


def test_the_yardstick_is_a_mean_of_ratios(cuts: tuple[Catalogue, list[Cut]]) -> None:
    made = cuts[1]
    rng = np.random.default_rng(0)
    own = tuple(rng.random(len(cut.users)).astype(np.float32) for cut in made)
    other = tuple((v * (0.5 if cut.kind == "time" else 3)).astype(np.float32) for cut, v in zip(made, own, strict=True))
    yard = Yardstick.of(made, own)
    time, last = np.concatenate(own[:6]).mean(), np.concatenate(own[6:]).mean()
    by_time, by_last = (sum(map(len, part)) for part in (own[:6], own[6:]))
    assert by_last < 600 < by_time
    share = 1 / (1 + (by_last / 600) ** 0.5)
    whole = share * time + (1 - share) * last
    assert yard.score(own) == pytest.approx(whole, rel=1e-5)
    assert yard.score(other) == pytest.approx(whole * (share * 0.5 + (1 - share) * 3), rel=1e-5)
    assert yard.gain(other, own)[0] == pytest.approx(yard.score(other) - yard.score(own), rel=1e-4)
    assert yard.loses(other, own)
    # A single cut is a plain paired bootstrap over its users.
    alone = Yardstick.of(made[-1:], own[-1:])
    assert alone.gain(other[-1:], own[-1:]) == pytest.approx(
        bootstrap_interval(other[-1].astype(float) - own[-1], 0.99), rel=1e-3
    )


# --- choices -----------------------------------------------------------------------------------------------


def test_tastes_that_drift_call_for_the_latest_events(found: Tuned) -> None:
    chosen = found.settings["ranking.recent"]
    assert chosen is not None
    assert chosen > 0
    assert found.gain is not None
    assert found.validation is not None
    assert found.gain[1] > 0
    assert found.validation[1] > 1.3 * found.validation[0]
    assert found.whole
    assert found.ageing
    before, after = (sum(x[i] for x in found.ndcg) for i in (0, 1))
    assert after > before


def test_a_setting_changes_only_for_a_certain_gain(found: Tuned) -> None:
    for row in found.rows:
        assert row.chosen in (row.before, row.best)
        assert (row.chosen != row.before) == (row.best != row.before and row.gain[1] > 0)
        assert {**found.settings, **row.chosen} == found.settings  # the last round changed nothing
        scores: dict[str, float] = {json.dumps(p): s for p, s in row.tried if s is not None}
        assert len(scores) == len(row.tried)
        if row.best != row.over:
            gain = scores[json.dumps(row.best)] - scores[json.dumps(row.over)]
            assert row.gain[0] == pytest.approx(gain, abs=1e-6)


def test_no_run_changes_and_no_id_is_written(job: Job, job_file: Path, found: Tuned) -> None:
    text = Path(found.journal).read_text()
    assert Path(found.journal).parent == job_file.parent / "store" / "tune"
    fields = {"ndcg", "ndcg_of_users", "seconds", "settings"}
    assert all(json.loads(line).keys() == fields for line in text.splitlines())
    assert [p.name for p in (job_file.parent / "store" / "runs").iterdir()] == ["whole"]
    assert len(text.splitlines()) == found.points


@pytest.mark.parametrize("cut_at", ["first line", "middle", "in a line"])
def test_a_killed_search_goes_on(job: Job, found: Tuned, cut_at: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(job.store, store)
    journal = store / "tune" / Path(found.journal).name
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = {"first line": 1, "middle": len(lines) // 2, "in a line": len(lines) // 2}[cut_at]
    torn = lines[kept][:50] if cut_at == "in a line" else b""
    journal.write_bytes(b"".join(lines[:kept]) + torn)
    said = Console(record=True, quiet=True, width=300)
    again = tune(job.model_copy(update={"store": str(store)}), minutes=60, console=said)
    assert again.earlier == kept
    assert (again.settings, again.rows, again.points) == (found.settings, found.rows, found.points)
    assert [json.loads(x)["ndcg"] for x in journal.read_bytes().splitlines()] == [json.loads(x)["ndcg"] for x in lines]


def test_without_time_the_jobs_own_settings_stay(job: Job, tmp_path: Path) -> None:
    own = job.model_copy(update={"store": str(tmp_path)})
    shutil.copytree(job.store, tmp_path, dirs_exist_ok=True, ignore=lambda *_: ["tune"])
    done = tune_events(
        own, read_embeddings(job.store_at), read_events(job)[0], None, deadline=time.monotonic() - 1, console=quiet()
    )
    assert (done.points, done.whole, done.changes) == (1, False, {})


def part_of(job: Job, hours: int, users: int) -> pa.Table:
    events, _ = read_events(job)
    soon = pc.less(pc.subtract(events["time"].cast(pa.int64()), START * 1_000_000), hours * HOUR * 1_000_000)
    return events.filter(soon).filter(
        pc.is_in(events.filter(soon)["user_id"], value_set=pa.array([f"u{u}" for u in range(users)], pa.string()))
    )


def choose(job: Job, events: pa.Table) -> Tuned:
    return tune_events(
        job, read_embeddings(job.store_at), events, None, deadline=time.monotonic() + 600, console=quiet()
    )


def test_a_short_log_does_not_age(job: Job, tmp_path: Path) -> None:
    shutil.copytree(job.store, tmp_path, dirs_exist_ok=True, ignore=lambda *_: ["tune"])
    auto = job.model_copy(update={"store": str(tmp_path), "ranking": replace(job.ranks, recent=None)})
    events = part_of(job, 100 * 24, USERS)
    hours = pc.divide(pc.subtract(events["time"].cast(pa.int64()), START * 1_000_000), 20)  # 100 days become five
    short = events.set_column(2, "time", pc.add(hours, START * 1_000_000).cast(events.schema.field("time").type))
    done = choose(auto, short)
    assert not done.ageing
    assert done.settings["ranking.recent"] == done.settings["ranking.trend"] == 0
    assert {k for r in done.rows for k in r.before} <= {k for g in GRIDS if not g.ageing for k in g.keys}


def test_a_log_of_few_users_chooses_nothing(job: Job) -> None:
    for users in (0, 12):
        done = choose(job, part_of(job, 100 * 24, users))
        assert (done.changes, done.validation, done.rows) == ({}, None, ())
        assert done.users <= users


def test_exposure_is_never_lowered(job: Job) -> None:
    grid = next(g for g in GRIDS if g.keys == ("ranking.cold_exposure",))
    for exposure, tried in ((0.0, [0.0, 0.05, 0.1, 0.2, 0.3]), (0.1, [0.1, 0.2, 0.3])):
        at = job.model_copy(update={"ranking": replace(job.ranks, cold_exposure=exposure)})
        own = settings_of(at, ageing=True)
        points = points_to_try(grid, at, own, own)
        assert [p["ranking.cold_exposure"] for p in points] == tried
    at = job.model_copy(update={"ranking": replace(job.ranks, cold_quantile=0.5)})
    own = settings_of(at, ageing=True)
    assert len(points_to_try(grid, at, own, own)) == 1


def test_all_keys_are_settings_of_the_job(job: Job) -> None:
    own = settings_of(job, ageing=True)
    assert tuple(own) == KEYS
    spec = spec_of(job, own)
    assert spec.ranking == replace(job.ranks, trend=1.0, recent=0.0)
    assert spec.profiles == job.profiles


# --- the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"interactions": None}, r"^interactions: missing; `unisono tune` chooses settings by the log"),
        ({"ranking": None}, r"^ranking: missing; .* give `ranking: {}`$"),
        ({"ranking": {"method": "vectors"}}, r"^ranking.method: vectors; .* set method: learned"),
        (
            {"privacy": {"noise": {"epsilon": 1.0, "delta": 1e-6}}, "ranking": None, "profiles": {"interests": 0}},
            r"^privacy.noise: ",
        ),
        ({"store": "nowhere"}, r"has no published run; run `unisono embed`"),
    ],
    ids=["no log", "no ranking", "vectors", "noise", "no run"],
)
def test_errors(job_file: Path, sections: dict[str, Any], message: str) -> None:
    body = {**yaml.safe_load(job_file.read_text()), **sections}
    other = job_file.parent / "other.yaml"
    other.write_text(yaml.safe_dump({k: v for k, v in body.items() if v is not None}))
    with pytest.raises(JobError, match=message):
        tune(load_job(str(other)), console=quiet())


def test_minutes_must_be_above_0(job: Job) -> None:
    with pytest.raises(JobError, match=r"^--minutes: 0 is not above 0"):
        tune(job, minutes=0)


def test_a_split_is_one_of_three(job: Job, cuts: tuple[Catalogue, list[Cut]]) -> None:
    with pytest.raises(JobError, match=r"^--split: 'random' is none of both, global-time, leave-last-out"):
        tune(job, split="random")
    catalogue, made = cuts
    by_time, last = (make_cuts(catalogue, read_events(job)[0], job, s) for s in ("global-time", "leave-last-out"))
    assert [cut.name for cut in (*by_time, *last)] == [cut.name for cut in made]


def test_the_command_prints_its_table_and_writes_a_job_file(job_file: Path, found: Tuned) -> None:
    done = CliRunner().invoke(app, ["tune", "--config", str(job_file)])
    assert done.exit_code == 0, done.output
    for key in ("ranking.recent", "ranking.factors", "ranking.content_users"):
        assert key in done.stdout
    assert "NDCG@10" in done.stdout
    assert f"going on from {found.points} points" in done.stderr
    tuned = job_file.with_name("job.tuned.yaml")
    assert f"settings written to {tuned}" in done.stdout.replace("\n", "")
    first, second = tuned.read_text().splitlines()[:2]
    assert first.startswith("# job.yaml with ranking.recent")
    assert second == "# the shop's own words"
    other = load_job(str(tuned))
    assert settings_of(other, ageing=True) == found.settings
    assert other.store == load_job(str(job_file)).store


def test_write_changes_the_job_file_and_json_is_json(job_file: Path, found: Tuned, tmp_path: Path) -> None:
    shutil.copytree(job_file.parent, tmp_path, dirs_exist_ok=True)
    own = tmp_path / "job.yaml"
    done = CliRunner().invoke(app, ["tune", "--config", str(own), "--write", "--json"])
    assert done.exit_code == 0, done.output
    out = json.loads(done.stdout)
    assert out["written"] == str(own)
    assert out["changes"] == found.changes
    text = own.read_text()
    assert text.startswith("# the shop's own words\n")
    assert settings_of(load_job(str(own)), ageing=True) == found.settings
    # The search goes on from the new settings, and writes nothing if it stays there.
    assert pd.Series(found.changes).notna().any()
