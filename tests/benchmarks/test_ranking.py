"""The ranking benchmark on a small log: rows, settings for one split and for all, comparisons, and a second run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import own_rows, ranking
from benchmarks.own_rows import Row, own_scorer, start_of, with_settings
from benchmarks.ranking import Bench, Cases, make_setup, ndcg_of, results, run_all, validate
from benchmarks.ranking_tables import ALL, AMONG_NEW, OF_NEW, compare, print_split
from benchmarks.rivals import RIVALS, Rival
from tests.benchmarks.cases import ITEMS, make_tables
from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.baselines import Scorer

LIKED = 0.5
SPLITS = ("leave-last-out", "global-time")
FEW: dict[str, Rival] = {
    "popular": RIVALS["popular"],
    "ease": Rival(RIVALS["ease"].fit, {"ridge": (10.0, 1.0)}),
    "ease, aged": Rival(RIVALS["ease, aged"].fit, {"ridge": (10.0,), "half_life_days": (30.0,)}, ages=True),
}


def fit_mixed(cases: Cases, settings: Mapping[str, Any]) -> Scorer:
    """Stands for Unisono: a mixture of popularity and of the user's group."""
    if settings.get("broken"):
        raise JobError("no such setting")
    case = cases["liked"]
    popularity = np.asarray(case.log.sum(0)).ravel()
    group = np.array([int(u[1:]) % 2 for u in case.train["user_id"].unique().to_pylist()])
    return lambda rows: popularity * settings["share"] + (group[rows, None] == np.arange(ITEMS) % 2) * settings["own"]


ROWS = {
    "unisono, nothing ages": Row({"own": 0}, ({"share": (1, 2)},), ages=False),
    "unisono, one setting": Row({"share": 1}, ({"own": (0, 1, 10, -10)},), together=True),
    "unisono, one setting, default exposure": Row({"own": 0}, like="unisono, one setting", together=True),
    "unisono, broken": Row({"broken": True}),
    "unisono, like the broken one": Row({}, like="unisono, broken"),
}


def make_bench(earlier: Any = None, splits: tuple[str, ...] = SPLITS) -> Bench:
    embeddings, events = make_tables()
    return Bench(
        setups={split: make_setup(embeddings, events, split, LIKED) for split in splits},
        seconds=1e9,
        seed=0,
        earlier=earlier or {},
        rows={split: {} for split in splits},
        values={split: {} for split in splits},
        save=lambda: None,
    )


@pytest.fixture(scope="module")
def bench() -> Bench:
    own_rows_before = dict(own_rows.OWN_ROWS)
    own_rows.OWN_ROWS.update(ROWS)
    made = make_bench()
    run_all(made, fit_mixed, FEW, ROWS)
    own_rows.OWN_ROWS.clear()
    own_rows.OWN_ROWS.update(own_rows_before)
    return made


def test_validation_splits_hold_training_events_only() -> None:
    embeddings, events = make_tables()
    for split in ranking.SPLITS:
        setup = make_setup(embeddings, events, split, LIKED)
        seen = set(map(str, setup.test["liked"].train.to_pylist()))
        assert len(setup.folds) == len(ranking.VALIDATION[split])
        for fold in setup.folds:
            assert set(map(str, fold["liked"].train.to_pylist())) < seen
        assert setup.test["all"].log.nnz > setup.test["liked"].log.nnz
        assert (setup.test["all"].relevant[1] == setup.test["liked"].relevant[1]).all()


def test_ndcg_of_a_perfect_order_is_one_and_of_the_reverse_less() -> None:
    embeddings, events = make_tables()
    case = make_setup(embeddings, events, "new-items", LIKED, folds=False).test["liked"]
    wanted = np.zeros((len(case.who), case.items))
    wanted[case.relevant] = 1
    place = np.zeros(case.log.shape[0], np.int64)
    place[case.rows] = np.arange(len(case.who))
    found = ndcg_of(lambda rows: wanted[place[rows]], case, (ALL, OF_NEW, AMONG_NEW))
    assert all(np.nanmin(values) == 1 for values in found.values())
    worst = ndcg_of(lambda rows: -wanted[place[rows]], case, (ALL, AMONG_NEW))
    assert np.nanmean(worst[ALL]) < np.nanmean(worst[AMONG_NEW]) < 1


def test_every_row_is_tuned_on_validation_and_has_the_best_value(bench: Bench) -> None:
    for split in SPLITS:
        folds = bench.setups[split].folds
        row = bench.rows[split]["ease"]
        each = [
            validate(ranking.fit_of_rival(FEW["ease"]), folds, {"ratings": r, "ridge": ridge})
            for r in ("liked", "all")
            for ridge in (10.0, 1.0)
        ]
        assert row["validation"] == max(each)
        assert (row["tried"], row["points"]) == (4, 4)


def test_one_setting_is_chosen_by_the_geometric_mean_over_splits(bench: Bench) -> None:
    values = {}
    for own in (0, 1, 10, -10):
        each = [validate(fit_mixed, bench.setups[s].folds, {"share": 1, "own": own}) for s in SPLITS]
        values[own] = float(np.sqrt(each[0] * each[1]))
    best = max(values, key=values.__getitem__)
    for split in SPLITS:
        row = bench.rows[split]["unisono, one setting"]
        assert row["settings"] == {"share": 1, "own": best}
        assert row["validation"] == pytest.approx(values[best])


def test_a_row_like_another_one_takes_its_settings_but_not_its_exposure(bench: Bench) -> None:
    row = bench.rows[SPLITS[0]]["unisono, one setting, default exposure"]
    assert row["settings"] == {"share": 1, "own": 0}
    given = {"ranking.factors": 8, "ranking.cold_exposure": 0, "ranking.cold_quantile": 0.5}
    assert start_of(Row({"ranking.cold_quantile": 0.8}), given) == {"ranking.factors": 8, "ranking.cold_quantile": 0.8}


def test_a_row_that_cannot_be_measured_says_why(bench: Bench) -> None:
    for name in ("unisono, broken", "unisono, like the broken one"):
        assert bench.rows[SPLITS[0]][name] == {"not_measured": "no such setting"}


def test_a_second_run_measures_with_the_settings_of_the_first(bench: Bench) -> None:
    saved = json.loads(json.dumps(bench.rows))
    again = make_bench(earlier=saved)
    again.seconds = 0
    run_all(again, fit_mixed, FEW, ROWS, only="ease|one setting$")
    assert set(again.rows[SPLITS[0]]) == {"ease", "ease, aged", "unisono, one setting"}
    for split in SPLITS:
        for name, row in again.rows[split].items():
            assert row["settings"] == bench.rows[split][name]["settings"]
            assert row["validation"] == bench.rows[split][name]["validation"]
            np.testing.assert_array_equal(again.values[split][name][ALL], bench.values[split][name][ALL])


def test_rivals_that_know_nothing_about_new_items_are_left_out_there() -> None:
    alone = make_bench(splits=("new-items",))
    run_all(alone, fit_mixed, {**FEW, "content ridge": RIVALS["content ridge"]}, {}, only="popular|ease|ridge")
    assert set(alone.rows["new-items"]) == {"popular", "content ridge"}


def test_differences_are_paired_and_the_best_rival_is_of_the_same_kind() -> None:
    rng = np.random.default_rng(0)
    per_user = {name: rng.random(200) for name in ("popular", "ease", "ease, aged", "unisono, nothing ages")}
    per_user["ease, aged"] = per_user["ease"] + 0.1
    per_user["popular"] = per_user["ease"] - 0.2
    per_user["unisono, ageing"] = per_user["ease"] + 0.15
    per_user["ease, our ageing and trend"] = per_user["ease"] + 5
    nobody = np.full(200, np.nan)
    found = compare({n: {ALL: v, OF_NEW: nobody, AMONG_NEW: nobody} for n, v in per_user.items()})
    ageing, plain = found["unisono, ageing"], found["unisono, nothing ages"]
    assert set(ageing) == {ALL}
    assert ageing[ALL]["users"] == 200
    assert ageing[ALL]["against"]["best rival"]["name"] == "ease, aged"
    for end in ("mean", "low", "high"):  # the difference is the same for each user, so its interval has no width
        assert ageing[ALL]["against"]["best rival"][end] == pytest.approx(0.05)
        assert ageing[ALL]["against"]["ease"][end] == pytest.approx(0.15)
    assert plain[ALL]["against"]["best rival"]["name"] == "ease"
    assert plain[ALL]["mean"] == pytest.approx(per_user["unisono, nothing ages"].mean())


def test_tables_show_every_row(bench: Bench) -> None:
    console = Console(width=250, record=True, file=io.StringIO())
    bench.values = {s: {n: v for n, v in rows.items() if n in FEW} for s, rows in bench.values.items()}
    bench.rows = {s: {n: r for n, r in rows.items() if n in FEW or "broken" in n} for s, rows in bench.rows.items()}
    for split, found in results(bench).items():
        print_split(split, found, console)
    text = console.export_text()
    for name in FEW:
        assert sum(line.split("  ")[0].strip() == name for line in text.splitlines()) == len(SPLITS)
    assert text.count("not measured: no such setting") == 2 * len(SPLITS)


def test_own_scores_are_plain_products_of_float32_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, events = make_tables()
    case = make_setup(embeddings, events, "leave-last-out", LIKED, folds=False).test["liked"]
    rng = np.random.default_rng(0)
    users = rng.normal(size=(len(case.who), 4)).astype(np.float32)
    items = rng.normal(size=(case.items, 4)).astype(np.float32)
    monkeypatch.setattr(own_rows, "own_scores", lambda job, case: (users, items))
    job: Any = None
    found = own_scorer(job, case)(case.rows[[3, 1]])
    np.testing.assert_allclose(found, users[[3, 1]] @ items.T, rtol=1e-6)
    monkeypatch.setattr(own_rows, "own_scores", lambda job, case: (users.astype(float), items))
    with pytest.raises(ValueError, match="float32"):
        own_scorer(job, case)


def test_settings_are_set_in_a_copy() -> None:
    content = {"ranking": {"k": 10}}
    found = with_settings(content, {"ranking.factors": 8, "privacy.noise": None})
    assert found == {"ranking": {"k": 10, "factors": 8}, "privacy": {"noise": None}}
    assert content == {"ranking": {"k": 10}}
