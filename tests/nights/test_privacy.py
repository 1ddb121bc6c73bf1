"""Runs of the whole job with pseudonyms, forgotten people and noise: no file names a user or shows too much."""

from __future__ import annotations

import hashlib
import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from apache_beam.internal import cloudpickle_pickler

from tests.nights.test_users_in_the_graph import ITEMS, Shop, part
from unisono.pipelines.ask.explain import explain
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.trial import read_events
from unisono.pipelines.graph import nightly
from unisono.pipelines.job.load import load_job, parse_job
from unisono.pipelines.job.plan import plan_run
from unisono.pipelines.launch import run_job
from unisono.pipelines.summary import print_summary
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.privacy.noise import gaussian_sigma
from unisono.transforms.privacy.pseudonyms import check_key
from unisono.transforms.store.privacy import ForgetStatement, PrivacyStatement
from unisono.transforms.store.runs import Store
from unisono.transforms.store.small_vectors import read_vectors

KEY, OTHER = "correct horse battery staple, and more", "another key that is just as long as the first"
NAME = "UNISONO_TEST_KEY"
HIDE = {"pseudonyms": {"key_env": NAME}}
RANK: dict[str, dict[str, Any]] = {"ranking": {"k": 5, "device": "cpu"}, "parts": {"recommend": True}}
FOLD = {"profiles": {"incremental": True, "interests": 0}}


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(NAME, KEY)
    return KEY


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def hmac_sha256(key: str, message: str) -> str:
    """Computes HMAC-SHA256 step by step. Source: RFC 2104."""
    block = key.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + message.encode()).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()


def hidden(user: str) -> str:
    return hmac_sha256(KEY, user)[:32]


def rank_again() -> dict:
    return {"ranking": dict(RANK["ranking"]), "parts": dict(RANK["parts"])}


def everything_written(store: Store) -> str:
    """Returns all values and metadata of all files of a store as one text."""
    found = []
    for path in Path(store.root).rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            found += [str(table.to_pylist()), str(table.schema.metadata)]
        elif path.is_file() and path.suffix != ".safetensors":
            found.append(path.read_text())
    return "\n".join(found)


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def metrics(store: Store, run_id: str) -> dict:
    return json.loads(Path(store.run_path(run_id, "metrics.json")).read_text())


def forget(shop: Shop, *users: object) -> str:
    pq.write_table(pa.table({"user_id": pa.array(users or [], pa.string())}), shop.root / "forget.parquet")
    return "forget.parquet"


# --- pseudonyms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        pa.chunked_array([["u1", None, "ü"], ["u1"]]),
        pa.chunked_array([pa.array(["b", "a", "b"]).dictionary_encode(), pa.array(["c", None]).dictionary_encode()]),
        pa.array([7, None, -3, 7], pa.int32()),
        pa.array([], pa.large_string()),
    ],
    ids=["strings", "dictionaries", "integers", "none"],
)
def test_a_pseudonym_is_a_keyed_hash(key, ids):
    found = check_key(NAME).of(ids)
    assert found.type == pa.string()
    assert found.to_pylist() == [None if i is None else hidden(str(i)) for i in ids.to_pylist()]


@pytest.mark.parametrize(("value", "says"), [(None, "is not set"), ("", "is not set"), ("x" * 31, "has 31 bytes")])
def test_without_a_good_key_nothing_starts(shop, monkeypatch, value, says):
    monkeypatch.delenv(NAME, raising=False)
    if value is not None:
        monkeypatch.setenv(NAME, value)
    with pytest.raises(JobError, match=f"privacy.pseudonyms.key_env: {NAME} {says} .*32 bytes or more") as e:
        shop.run("r", privacy=HIDE)
    assert "\n" not in str(e.value)
    assert not (shop.root / "store").exists()


def test_no_file_names_a_user_or_holds_the_key(shop, key):
    bad = pa.table({"user": ["u03", "u99"], "item": [None, "i001"], "time": [1_770_000_000, None]})
    shop.log = pa.concat_tables([shop.log, bad.cast(shop.log.schema)])
    store = shop.run("r", privacy=HIDE, behaviour={"dim": 12}, **FOLD, **rank_again())
    users, served = part(store, "users"), part(store, "recommendations")
    names = sorted(hidden(u) for u in set(shop.log["user"].to_pylist()) - {"u99"})
    assert users["user_id"].to_pylist() == served["user_id"].to_pylist() == names
    written = everything_written(store)
    assert KEY not in written
    assert not any(KEY.encode() in p.read_bytes() for p in Path(store.root).rglob("*") if p.is_file())
    assert not re.findall(r"\bu\d\d\b", written)
    assert {d.partition(" ")[0] for d in part(store, "dead_letters")["detail"].to_pylist()} == {
        f"user={hidden('u03')}", f"user={hidden('u99')}",
    }  # fmt: skip
    assert metrics(store, "r")["users.without_usable_event"] == 1
    # The same run without pseudonyms has the same profiles under other ids.
    plain = Shop(new_folder(shop.root / "plain"))
    plain.log = shop.log
    known = part(plain.run("r", behaviour={"dim": 12}), "users")
    order = np.argsort([hidden(u) for u in known["user_id"].to_pylist()])
    np.testing.assert_array_equal(read_vectors(users)[0], read_vectors(known.take(pa.array(order)))[0])
    # `explain` takes the raw user id.
    item = served["item_ids"][0][0].as_py()
    owner = next(u for u in shop.log["user"].to_pylist() if hidden(u) == names[0])
    found = explain(PublishedRun.open(store), owner, item)
    assert found.score == pytest.approx(served["scores"][0][0].as_py(), abs=1e-5)
    assert len(found.events) == shop.log["user"].to_pylist().count(owner)
    with pytest.raises(JobError, match="user: 'nobody' is not in users/"):
        explain(PublishedRun.open(store), "nobody", item)


def test_the_graph_carries_the_name_of_the_key_and_not_the_key(shop, key, monkeypatch):
    whom = "somebody-who-is-forgotten"  # A long id, because compressed bytes contain any three letters by chance.
    shop.run("r", privacy=HIDE | {"forget": forget(shop, "u07", whom)})
    plan = plan_run(load_job(str(shop.root / "job.yaml")), "next", items=True, users=True)
    pickled: list[bytes] = []
    for codec in ("bz2", "zlib"):  # Beam compresses a graph's functions with one of these.
        module = getattr(cloudpickle_pickler, codec)
        real = module.compress

        def compress(data, *args, real=real, **kwargs):
            pickled.append(data)
            return real(data, *args, **kwargs)

        monkeypatch.setattr(module, "compress", compress)
    pipeline = beam.Pipeline()
    nightly.build(pipeline, plan)
    proto = pipeline.to_runner_api().SerializeToString()
    assert sum(NAME.encode() in p for p in pickled) > 2
    assert not any(KEY.encode() in p or whom.encode() in p for p in [*pickled, proto])


def test_pseudonyms_of_another_key_or_none_are_not_mixed_with_published_ones(shop, key, monkeypatch):
    store = shop.run("one", privacy=HIDE, events=slice(0, 2000), **FOLD, **rank_again())
    job = str(shop.root / "job.yaml")
    said = store.published().privacy.pseudonyms.key_fingerprint
    assert said == check_key(NAME).fingerprint != hmac_sha256(KEY, "")[:16]
    monkeypatch.setenv(NAME, OTHER)
    with pytest.raises(JobError, match=f"privacy.pseudonyms: .*users/ are of the key .*{said}.*unisono profile"):
        plan_run(load_job(job), "two", items=False, users=False, recommend=True)
    with pytest.raises(JobError, match=f"the published state/ are of the key .*{said}.*incremental: restart"):
        shop.run("two", privacy=HIDE, events=slice(2000, 4000), **FOLD)
    with pytest.raises(JobError, match="this job's are of no key"):
        shop.run("two", events=slice(2000, 4000), **FOLD)
    with pytest.raises(JobError, match=f"{NAME} holds another key here"):
        explain(PublishedRun.open(store), "u07", "i001")
    monkeypatch.delenv(NAME)
    with pytest.raises(JobError, match=f"{NAME} is not set"):
        explain(PublishedRun.open(store), "u07", "i001")
    monkeypatch.setenv(NAME, OTHER)
    store = shop.run("two", privacy=HIDE, **{"profiles": {"incremental": "restart"}})
    assert store.published().privacy.pseudonyms.key_fingerprint != said
    assert part(store, "users")["user_id"][0].as_py() == min(hmac_sha256(OTHER, f"u{u:02d}")[:32] for u in range(60))


def test_dataflow_needs_an_image_that_has_the_key(key, tmp_path):
    (tmp_path / "job.yaml").write_text(json.dumps({
        "store": "gs://b/s", "catalog": {"path": "gs://b/c.parquet", "id": "id", "text": "t"}, "privacy": HIDE,
    }))  # fmt: skip
    options = ["--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t"]
    with pytest.raises(JobError, match=f"{NAME} does not travel with the job.*--sdk_container_image"):
        run_job(str(tmp_path / "job.yaml"), "r", options, items=True, users=False)


# --- forget ------------------------------------------------------------------------------------------------


def test_the_forgotten_leave_a_run_as_if_they_had_never_been_there(shop, capsys):
    bad = pa.table({"user": ["u03"], "item": [None], "time": [1_770_000_000]}).cast(shop.log.schema)
    shop.log, gone = pa.concat_tables([shop.log, bad]), pa.array(["u03", "u11"])
    settings: dict[str, Any] = {"behaviour": {"dim": 12}, "profiles": {"min_events": 70}}
    ranking: dict[str, Any] = {
        "ranking": {"k": 5, "device": "cpu", "popularity_penalty": 0.3},
        "parts": {"recommend": True},
    }
    path = forget(shop, "u03", "u11", "u03", None, "never here")
    store = shop.run("r", privacy={"forget": path}, **settings, **deepcopy(ranking))
    print_summary(store, store.published(), 0)
    assert re.search(r"people forgotten +2 ", capsys.readouterr().out)
    assert store.published().privacy == PrivacyStatement(
        forget=ForgetStatement((str(shop.root / "forget.parquet"),), removed=2)
    )
    written = json.loads(Path(store.run_path("r", "manifest.json")).read_text())
    assert written["privacy"] == {"forget": {"files": [str(shop.root / "forget.parquet")], "removed": 2}}
    assert metrics(store, "r")["users.forgotten"] == 2
    measured, _ = read_events(load_job(str(shop.root / "job.yaml")))
    assert set(measured["user_id"].to_pylist()) == set(shop.log["user"].to_pylist()) - {"u03", "u11"}
    never = Shop(new_folder(shop.root / "never"))
    never.log = shop.log.filter(pc.invert(pc.is_in(shop.log["user"], value_set=gone)))
    other = never.run("r", **settings, **deepcopy(ranking))
    for name in ("users", "items", "behaviour", "recommendations", "dead_letters"):
        assert part(store, name).equals(part(other, name)), name


def test_the_forgotten_leave_the_sums_of_earlier_nights(shop, key):
    name, hide = hidden, HIDE  # The test before this one has no pseudonyms.
    log = shop.log.to_pandas()
    shop.run("one", events=slice(0, 2000), privacy=hide, behaviour={"dim": 12}, **FOLD)
    # u21 is only in the state, u22 is in the state and in the new log, u98 is only in the new log, u99 is in neither.
    late = log[2000:].copy()
    late = late[late.user != "u21"]
    late.iloc[0, 0] = "u98"
    shop.log = pa.Table.from_pandas(late, schema=shop.log.schema, preserve_index=False)
    gone = {"forget": forget(shop, "u21", "u22", "u98", "u99")}
    store = shop.run("two", privacy=hide | gone, behaviour={"dim": 12}, **FOLD, **rank_again())
    assert store.published().privacy.forget.removed == 3
    expected = sorted(name(u) for u in set(log.user) - {"u21", "u22"})
    for table in ("users", "state", "recommendations"):
        assert sorted(part(store, table)["user_id"].to_pylist()) == expected
    # Files that a run takes over from the published run are written again, without the forgotten people.
    gone = {"forget": forget(shop, "u21", "u22", "u23")}
    parts = {"items": False, "users": False, "recommend": True}
    store = shop.run("three", privacy=hide | gone, **FOLD, **(rank_again() | {"parts": parts}))
    expected.remove(name("u23"))
    assert store.published().privacy.forget.removed == 2  # u22 is still in the log.
    for table in ("users", "state", "recommendations"):
        assert sorted(part(store, table)["user_id"].to_pylist()) == expected
        assert all("/three/" in f.path for f in store.published().part(table))
    gone = {"forget": forget(shop, "u24")}
    store = shop.run("four", privacy=hide | gone, behaviour={"dim": 12}, **FOLD, parts={"users": False})
    expected.remove(name("u24"))
    assert sorted(part(store, "state")["user_id"].to_pylist()) == expected
    shop.log = pa.Table.from_pandas(log[:50], schema=shop.log.schema, preserve_index=False)
    gone = {"forget": forget(shop)}
    shop.run("five", privacy=hide | gone, behaviour={"dim": 12}, **FOLD)  # Events can still be added to the sums.
    assert store.published().privacy.forget.removed == 0


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (None, r"privacy.forget: no file matches .*/forget.parquet"),
        (pa.table({"id": ["u1"]}), r"privacy.forget: no column 'user_id' in .*it has id \(string\)"),
        (pa.table({"user_id": [1]}), "privacy.forget: column 'user_id' .* holds int64, interactions.user string"),
        (pa.table({"user_id": [0.5]}), "privacy.forget: column 'user_id' .* is double; allowed: strings or integers"),
    ],
    ids=["no file", "no column", "other ids", "no ids"],
)
def test_a_list_of_people_that_cannot_be_used_is_refused(shop, table, says):
    if table is not None:
        pq.write_table(table, shop.root / "forget.parquet")
    with pytest.raises(JobError, match=says) as e:
        shop.run("r", privacy={"forget": "forget.parquet"})
    assert "\n" not in str(e.value)


# --- noise -------------------------------------------------------------------------------------------------

NOISE = {"noise": {"epsilon": 8.0, "delta": 1e-5, "clip": 0.5}}
ALONE = {"profiles": {"interests": 0, "min_events": 66}, "ranking": {"k": 5, "device": "cpu", "exclude_seen": False}}


def test_a_run_with_noise_shows_noised_vectors_and_nothing_else_from_the_log(shop, capsys):
    bad = pa.table({"user": ["u03", "u99"], "item": ["i001", "i002"], "time": [None, 7]}).cast(shop.log.schema)
    shop.log = pa.concat_tables([shop.log, bad])
    parts = {"parts": {"recommend": True}}
    clean = part(shop.run("clean", profiles={"interests": 0}), "users")
    store = shop.run("one", privacy=NOISE, **ALONE, **parts)
    users, served = part(store, "users"), part(store, "recommendations")
    # Cold users have a row too. u99 has none, because u99 has no usable event.
    assert users["user_id"].to_pylist() == clean["user_id"].to_pylist()
    for name in set(users.column_names) - {"user_id", "vector", "ranking_vector"}:
        assert users[name].null_count == users.num_rows
    vectors, _ = from_vector_column(users["vector"])
    ranking, _ = from_vector_column(users["ranking_vector"])
    np.testing.assert_array_equal(ranking[:, :-4], vectors)  # the noised vector again, and what is the same for all
    assert (ranking[:, -4:] == [0, 0, 0, 1]).all()
    said = store.published().privacy.noise
    assert said.sigma == pytest.approx(gaussian_sigma(8.0, 1e-5, 1.0))
    assert (said.epsilon, said.delta, said.clip, said.releases) == (8.0, 1e-5, 0.5, 1)
    assert said.epsilon_of_releases == pytest.approx(8.0, rel=1e-6)
    warm = clean["events"].to_numpy() >= 66
    assert 0 < warm.sum() < len(warm)
    noise = vectors - 0.5 * read_vectors(clean)[0] * warm[:, None]
    assert noise.std() == pytest.approx(said.sigma, rel=0.15)  # the standard deviation of 720 values
    items = part(store, "items")
    scores = vectors @ read_vectors(items)[0].T
    best = [[items["item_id"][int(i)].as_py() for i in row[:5]] for row in np.argsort(-scores, 1)]
    assert served["item_ids"].to_pylist() == best
    letters = part(store, "dead_letters")
    assert sorted(letters["reason"].to_pylist()) == ["null_time", "time_out_of_range"]
    assert letters["item_id"].null_count == letters["detail"].null_count == 2
    written = everything_written(Store(str(Path(store.root) / "runs" / "one")))
    assert not re.findall(r"\bu99\b|user=", written)
    with pytest.raises(JobError, match=r"explain: the published profiles are noised"):
        explain(PublishedRun.open(store), "u07", "i001")
    run_job(str(shop.root / "job.yaml"), "two", [], items=False, users=True)
    assert "a release is (8, 1e-05)-private; 2 so far" in capsys.readouterr().out
    again = Store(store.root)
    said = again.published().privacy.noise
    assert said is not None
    assert said.releases == 2
    assert said.epsilon_of_releases is not None
    assert 8.0 < said.epsilon_of_releases < 16.0
    assert not np.any(read_vectors(part(again, "users"))[0] == vectors)
    with pytest.raises(JobError, match=r"privacy.noise: this job has none, .* users/ have epsilon 8, delta 1e"):
        shop.run("three", **ALONE, parts={"items": False, "users": False, "recommend": True})


GOOD = {
    "store": "s", "catalog": {"path": "c", "id": "i", "text": "t"}, "privacy": NOISE,
    "interactions": {"path": "l", "user": "u", "item": "i", "time": "t"}, **ALONE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"profiles": {}}, "profiles.interests: 3"),
        ({"profiles": {"interests": 0, "incremental": True}}, "profiles.incremental"),
        ({"profiles": {"interests": 0, "robots": "drop"}}, "profiles.robots: drop"),
        ({"behaviour": {}}, "behaviour .leave it out"),
        ({"ranking": {}}, "ranking.exclude_seen: true"),
        ({"ranking": {"exclude_seen": False, "popularity_penalty": 1}}, "ranking.popularity_penalty"),
        ({"ranking": {"exclude_seen": False, "popularity_bonus": 1}}, "ranking.popularity_bonus"),
        ({"ranking": {"exclude_seen": False, "caution": 1}}, "ranking.caution"),
        ({"ranking": {"exclude_seen": False, "fusion": "late"}}, "ranking.fusion: late"),
        ({"privacy": {"noise": {"epsilon": 0, "delta": 1e-5}}}, "privacy.noise.epsilon"),
        ({"privacy": {"noise": {"epsilon": 1}}}, "privacy.noise.delta: required"),
        ({"privacy": {"noise": {"epsilon": 1, "delta": 1e-5, "clip": 1.5}}}, "privacy.noise.clip"),
        ({"privacy": {"noise": {"epsilon": 1, "delta": 1e-5, "seed": 1}}}, "privacy.noise.seed: unknown key"),
        ({"privacy": {"pseudonyms": {"key_env": "0b1c-secret"}}}, "privacy.pseudonyms: key_env is the name"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_settings_that_break_the_guarantee_of_noise_are_refused_in_one_line(change, says):
    parse_job(GOOD, "job.yaml")
    with pytest.raises(JobError, match=says) as e:
        parse_job(GOOD | change, "job.yaml")
    assert "\n" not in str(e.value)
    assert "secret" not in str(e.value)


def test_items_with_behaviour_are_refused_beside_noise(shop):
    shop.run("one", behaviour={"dim": 12})
    with pytest.raises(JobError, match=r"privacy.noise: the published items are made of the events as they are"):
        shop.run("two", privacy=NOISE, **ALONE, parts={"items": False})
    assert part(Store(str(shop.root / "store")), "items").num_rows == ITEMS
