"""Explanations: the parts add up to the score that the run ranked by."""

from __future__ import annotations

from pathlib import Path

import pytest

import unisono
from tests.small_shop import make_shop, write_job


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="learned"),
        pytest.param({"ranking": {"interests": "weighted"}}, id="weighted interests"),
        pytest.param({"ranking": {"interests": "profile"}, "profiles": {"delta": 0.6}}, id="refined"),
        pytest.param({"ranking": {"fusion": "late", "interests": "profile", "weights": {"text": 2}}}, id="late"),
        pytest.param({"profiles": {"min_events": 3, "session_minutes": 600}}, id="cold"),
        pytest.param(
            {"ranking": {"interests": "profile"}, "profiles": {"min_events": 3, "session_minutes": 600}},
            id="cold profile",
        ),
    ],
)
def test_parts_add_up_to_the_score_that_was_ranked_by(
    shop: Path, sections: dict, request: pytest.FixtureRequest
) -> None:
    run = unisono.run(write_job(shop, request.node.callspec.id.replace(" ", "-"), **sections))
    served = run.recommendations()
    users = served["user_id"].to_pylist()
    assert len(users) == 26
    for user in ("u0", "u7", "newcomer"):
        row = users.index(user)
        item, score = served["item_ids"][row][0].as_py(), served["scores"][row][0].as_py()
        found = run.explain(user, item)
        assert found.score == pytest.approx(score, abs=1e-5)
        assert sum(p for _, p in found.modalities) == pytest.approx(score, abs=1e-5)
        assert sum(p for *_, p in found.events) + found.rest == pytest.approx(found.score, abs=1e-9)
        popularity = sum(part for name, part in found.modalities if name == "popularity")
        if user == "newcomer" and "min_events" in sections.get("profiles", {}):
            assert abs(found.rest) > 0.01  # the part of the prior, or of popularity
        elif found.events:
            assert found.rest == pytest.approx(popularity, abs=1e-5)


def test_a_later_recommend_run_is_explained_by_its_own_ranking(shop: Path) -> None:
    unisono.run(write_job(shop, "later"), "first", recommend=False)
    job = write_job(shop, "later", ranking={"interests": "profile"})
    run = unisono.run(job, "second", items=False, users=False, recommend=True)
    served = run.recommendations().slice(0, 1).to_pylist()[0]
    found = run.explain(served["user_id"], served["item_ids"][0])
    assert found.query == "profile"
    assert found.score == pytest.approx(served["scores"][0], abs=1e-5)


def test_a_user_or_item_that_is_not_there_is_named(shop: Path) -> None:
    run = unisono.run(write_job(shop, "plain"), "r")
    with pytest.raises(unisono.JobError, match="user: 'nobody' is not in users/ of run r"):
        run.explain("nobody", "i1")
    with pytest.raises(unisono.JobError, match="item: 'i99' is not in items/ of run r"):
        run.explain("u1", "i99")
