"""Every way a job file can be wrong is one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from unisono.pipelines.job.load import load_job, parse_job
from unisono.transforms.base.errors import JobError

GOOD = {"store": "out", "catalog": {"path": "c/*.parquet", "id": "id", "text": ["title"]}}
LOG = {"path": "log/*.parquet", "user": "u", "item": "i", "time": "t"}


def changed(**changes):
    body: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in GOOD.items()}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            body.setdefault(section, {})[name] = value
        else:
            body[section] = value
    return body


BAD = {
    "no store": ({k: v for k, v in GOOD.items() if k != "store"}, "store: required"),
    "no catalogue": ({"store": "x"}, "catalog: required"),
    "no id": (changed(catalog={"path": "x", "text": "t"}), "catalog.id: required"),
    "unknown key": (changed(shard=3), "shard: unknown key; allowed here: store, catalog, shards"),
    "unknown inner key": (changed(catalog__images="x"), "catalog.images: unknown key; allowed here: path, id"),
    "no modality": (changed(catalog={"path": "x", "id": "i"}), "catalog: names no modality"),
    "template without columns": (changed(catalog__text="{}"), "catalog.text: names no column"),
    "no text columns": (changed(catalog__text=[]), "catalog.text: names no column"),
    "shards of zero": (changed(shards=0), "shards: Input should be greater than 0 (got 0)"),
    "shards of a word": (changed(shards="many"), "(got 'many')"),
    "unknown method": (changed(space__method="magic"), "space.method: Input should be"),
    "weight below zero": (changed(fusion__weights={"text": -1}), "fusion.weights.text"),
    "weight of no modality": (changed(fusion__weights={"smell": 1}), "fusion.weights.smell"),
    "fraction over one": (changed(limits__max_dead_letter_fraction=2), "limits.max_dead_letter_fraction"),
    "half-life of zero": (changed(profiles__half_life_days=0), "profiles.half_life_days"),
    "event without weights": (changed(interactions=LOG | {"event": "e"}), "give both `event` and `weights`"),
    "encoder without model": (changed(encoders={"text": {}}), "encoders.text.model: required"),
    "encoder of no modality": (changed(encoders={"smell": "lite"}), "encoders.smell: unknown key"),
    "nothing to encode": (changed(encoders={"text": "none"}), "encoders: nothing is left to encode"),
    "joint of a part that is not there": (
        changed(encoders={"joint": {"model": "st/x", "parts": ["text", "audio"]}}),
        "encoders.joint.parts: 'audio' is no modality of the catalogue; it has ['text']",
    ),
    "template with a format": (changed(catalog__text="{a:>9}"), "catalog.text: a template takes plain"),
    "too many shards": (changed(shards=10**9), "shards: Input should be less than"),
    "event that YAML reads as true": (
        changed(interactions=LOG | {"event": "e", "weights": {True: 1}}),
        "interactions.weights: YAML reads true as a boolean",
    ),
    "a list": ([1, 2], "a job file is a mapping"),
    "nothing": (None, "a job file is a mapping"),
}


@pytest.mark.parametrize(("body", "said"), BAD.values(), ids=BAD)
def test_bad(body, said) -> None:
    with pytest.raises(JobError) as e:
        parse_job(body, "/jobs/job.yaml")
    assert said in str(e.value)
    assert str(e.value).startswith("/jobs/job.yaml: ")
    assert "\n" not in str(e.value)


def test_a_file_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot read .*none\.yaml"):
        load_job(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("store: [1, 2\ncatalog: }")
    with pytest.raises(JobError, match="not YAML") as e:
        load_job(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "Yes", "OFF", "y", "n"])
def test_words_that_yaml_1_1_reads_as_booleans_are_names(tmp_path: Path, word: str) -> None:
    path = tmp_path / "job.yaml"
    text = f"""store: {word}
catalog: {{path: c.parquet, id: {word}, text: [{word}]}}
interactions: {{path: log.parquet, user: u, item: i, time: t, event: {word}, weights: {{{word}: 2, true-ish: 1}}}}
ranking: {{filter: {word}}}
"""
    path.write_text(text)
    job = load_job(str(path))
    assert job.store == str(tmp_path / word)
    assert (job.catalog.id, job.catalog.text_columns) == (word, (word,))
    assert (job.log.event, job.log.weights) == (word, {word: 2.0, "true-ish": 1.0})
    assert job.ranking is not None
    assert job.ranking.filter == word
    # What a run keeps of the job reads back the same, also by a reader of YAML 1.1.
    path.write_text(job.to_yaml())
    assert load_job(str(path)) == job
    assert parse_job(yaml.safe_load(job.to_yaml()), str(path)) == job


def test_a_boolean_setting_takes_true_and_these_words(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    for word, value in {"true": True, "False": False, "on": True, "off": False, "yes": True, "no": False}.items():
        ranking, profiles = f"ranking: {{exclude_seen: {word}}}", f"profiles: {{incremental: {word}}}"
        path.write_text(f"{yaml.safe_dump(GOOD)}{ranking}\n{profiles}\n")
        job = load_job(str(path))
        assert job.ranks.exclude_seen is value
        assert job.profiles.incremental is value
    path.write_text(yaml.safe_dump(GOOD) + "ranking: {exclude_seen: maybe}\n")
    with pytest.raises(JobError, match=r"ranking.exclude_seen: Input should be a valid boolean"):
        load_job(str(path))
    path.write_text(yaml.safe_dump(GOOD) + "profiles: {half_life_days: yes}\n")
    with pytest.raises(JobError, match=r"profiles.half_life_days: .*\(got 'yes'\)"):
        load_job(str(path))


def test_relative_paths_are_relative_to_the_file() -> None:
    body = changed(
        interactions=LOG,
        encoders={"text": {"model": "./minilm"}, "image": {"model": "open_clip/ViT-B-32", "weights": "../b32"}},
        catalog__media_root="media",
        catalog__allow=["other", "gs://shop/media/"],
    )
    job = parse_job(body, "/jobs/shop/job.yaml")
    assert job.store == "/jobs/shop/out"
    assert job.catalog.path == "/jobs/shop/c/*.parquet"
    assert job.media_source.root == "/jobs/shop/media"
    assert job.media_source.allow == ("/jobs/shop/other", "gs://shop/media/")
    assert job.log.path == "/jobs/shop/log/*.parquet"
    assert job.encoder_spec("text").model == "/jobs/shop/minilm"
    assert job.encoder_spec("image").model == "open_clip/ViT-B-32"  # a name, not a path
    assert job.encoder_spec("image").options == (("weights", "/jobs/b32"),)
    beside = parse_job(changed(encoders={"text": "clap/./clap", "image": "clap/laion/x"}), "/jobs/shop/job.yaml")
    assert beside.encoder_spec("text").model == "clap//jobs/shop/clap"
    assert beside.encoder_spec("image").model == "clap/laion/x"
    assert parse_job(GOOD, "gs://jobs/shop/job.yaml").store == "gs://jobs/shop/out"


def test_media_resolve_beside_the_catalogue_by_default() -> None:
    assert parse_job(GOOD, "/jobs/job.yaml").media_source.root == "/jobs/c"


def test_a_joint_encoder_takes_the_catalogues_columns_and_others_may_be_none() -> None:
    body = changed(encoders={"joint": "st/x", "text": "none"}, catalog__image="img", catalog__audio="snd")
    job = parse_job(body, "/jobs/job.yaml")
    assert job.modalities == ("image", "audio", "joint")
    assert dict(job.encoder_spec("joint").options) == {"parts": ("text", "image", "audio")}
    assert job.read_catalog.modalities == ("text", "image", "audio")  # the joint encoder reads the text
    assert parse_job(yaml.safe_load(job.to_yaml()), "/elsewhere/config.yaml") == job
    body["encoders"] = {"text": "none", "joint": {"model": "st/x", "parts": ["image"]}}
    job = parse_job(body, "/jobs/job.yaml")
    assert job.read_catalog.modalities == ("image", "audio")
    assert job.read_catalog.title_column == "title"  # still shown
    hash(job.encoder_spec("joint"))


@pytest.mark.parametrize(
    ("text", "columns"), [("title", ("title",)), ("{a}: {b}", ("a", "b")), (["a", "b"], ("a", "b"))], ids=str
)
def test_text_is_a_column_a_list_or_a_template(text, columns) -> None:
    assert parse_job(changed(catalog__text=text), "/j/j.yaml").catalog.text_columns == columns


def test_what_is_written_to_the_run_reads_back_the_same() -> None:
    job = parse_job(changed(interactions=LOG | {"event": "e", "weights": {"buy": 2, "skip": -1}}), "/jobs/job.yaml")
    assert parse_job(yaml.safe_load(job.to_yaml()), "/elsewhere/config.yaml") == job
