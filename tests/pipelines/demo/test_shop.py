"""The synthetic shop keeps its promises: checked with Pillow, soundfile and pandas."""

import hashlib
import io
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image, UnidentifiedImageError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unisono.pipelines.demo.items import CATEGORIES, Latent, plant
from unisono.pipelines.demo.pictures import draw_picture
from unisono.pipelines.demo.shop import generate_shop
from unisono.pipelines.demo.sounds import encode_sound, play_sound
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.media.audio import decode_audio
from unisono.transforms.media.images import decode_image

TABLES = ("catalog", "interactions", "heldout", "truth_items", "truth_users", "truth_faults")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return generate_shop(tmp_path_factory.mktemp("demo") / "shop", items=100, users=30, seed=3)


@pytest.fixture(scope="module")
def tables(shop):
    return {name: pd.read_parquet(getattr(shop, name)) for name in TABLES}


def _digests(directory, pattern="**/*"):
    files = (path for path in sorted(directory.glob(pattern)) if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_everything_says_that_it_is_synthetic(shop):
    assert "SYNTHETIC" in (shop.directory / "README.txt").read_text()
    for name in TABLES:
        assert pq.read_schema(getattr(shop, name)).metadata[b"synthetic"] == b"true", name


def test_ids_are_unique_and_counts_agree(shop, tables):
    catalog, log = tables["catalog"], tables["interactions"]
    assert catalog.item_id.is_unique
    assert catalog.item_id.tolist() == tables["truth_items"].item_id.tolist()
    unknown = ~log.item_id.isin(catalog.item_id)
    assert shop.counts == {
        "items": 100, "users": 30, "faults": len(tables["truth_faults"]),
        "text": catalog.title.notna().sum(),
        "image": catalog.image_uri.notna().sum(),
        "audio": catalog.audio_uri.notna().sum(),
        "interactions": len(log), "unknown_items": unknown.sum(), "heldout": len(tables["heldout"]),
    }  # fmt: skip


def test_modalities_are_missing_at_the_stated_rate_and_never_all():
    items = [plant(11, index) for index in range(3000)]
    has = np.array([item.has for item in items])
    # For a rate of 0.1 over 3,000 items, three standard errors are 0.016.
    np.testing.assert_allclose(1 - has.mean(0), 0.1, atol=0.017)
    assert has.any(1).all()
    grades = np.array([item.latent.grades for item in items])
    assert abs(np.corrcoef(grades.T) - np.eye(4)).max() < 0.08


def test_faults_cannot_be_decoded_and_the_decoders_give_the_planned_reason(shop, tables):
    catalog = tables["catalog"].set_index("item_id")
    faults = tables["truth_faults"]
    assert faults.item_id.is_unique
    assert set(faults.reason) == {
        "empty_file", "truncated", "not_an_image", "unsupported_format",
        "not_found", "not_audio", "empty_text",
    }  # fmt: skip
    for fault in faults.itertuples():
        row = catalog.loc[fault.item_id]
        others = {"text": "title", "image": "image_uri", "audio": "audio_uri"}
        assert any(pd.notna(row[others[m]]) for m in others if m != fault.modality)
        if fault.modality == "text":
            assert row.title.strip() == ""
            assert pd.isna(row.description)
            continue
        assert row[f"{fault.modality}_uri"] == fault.uri
        path = shop.directory / fault.uri
        if fault.reason == Reason.NOT_FOUND:
            assert not path.exists()
            continue
        data = path.read_bytes()
        if fault.modality == "image":
            with pytest.raises((UnidentifiedImageError, OSError)):
                Image.open(io.BytesIO(data)).load()
        elif fault.reason == Reason.TRUNCATED:  # libsndfile reads a truncated file; only the RIFF header shows it.
            assert int.from_bytes(data[4:8], "little") + 8 > len(data)
        else:
            with pytest.raises(soundfile.LibsndfileError):
                soundfile.read(io.BytesIO(data))
        with pytest.raises(InputError) as caught:
            (decode_image if fault.modality == "image" else decode_audio)(data)
        assert caught.value.reason == fault.reason


def test_all_other_media_decode(shop, tables):
    catalog, faults = tables["catalog"], tables["truth_faults"]
    images = set(catalog.image_uri.dropna()) - set(faults.uri)
    sounds = set(catalog.audio_uri.dropna()) - set(faults.uri)
    assert {uri.rsplit(".")[-1] for uri in images} == {"png", "jpg"}
    assert {uri.rsplit(".")[-1] for uri in sounds} == {"wav", "ogg"}
    for uri in images:
        picture = Image.open(shop.directory / uri)
        picture.load()
        assert picture.mode == "RGB"
        assert 96 <= picture.width == picture.height <= 128
        assert np.asarray(picture).std() > 5  # The picture is not of one colour.
    for uri in sounds:
        wave, rate = soundfile.read(shop.directory / uri)
        assert rate == 16_000
        assert 0.99 < len(wave) / rate < 1.51
        assert 0.2 < np.abs(wave).max() <= 1
    on_disk = set(_digests(shop.directory, "images/*")) | set(_digests(shop.directory, "audio/*"))
    assert on_disk == (images | sounds | set(faults.uri[faults.reason != "not_found"].dropna()))


def test_interactions_follow_the_tastes(shop, tables):
    log, heldout = tables["interactions"], tables["heldout"]
    users, items = tables["truth_users"], tables["truth_items"]
    end = pd.Timestamp("2026-11-01", tz="UTC")
    assert log.timestamp.max() < end
    assert log.timestamp.min() >= end - pd.Timedelta(days=60)
    assert log.timestamp.is_monotonic_increasing
    assert pq.read_schema(shop.interactions).field("timestamp").type == pa.timestamp("us", "UTC")
    assert set(log.event) == {"view", "cart", "purchase", "dislike"}
    assert log.groupby("user_id").size().between(25, 40).all()
    assert 0 < (~log.item_id.isin(items.item_id)).mean() < 0.05

    pairs = heldout.merge(log, how="inner", on=["user_id", "item_id"])
    assert len(pairs) == 0
    assert not heldout.duplicated().any()
    assert heldout.item_id.isin(items.item_id).all()
    assert heldout.groupby("user_id").size().between(3, 7).all()
    assert set(heldout.user_id) == set(users.user_id) == set(log.user_id)

    def on_taste(table):
        joined = table.merge(users, on="user_id").merge(items, on="item_id")
        return np.mean([c in tastes for c, tastes in zip(joined.category, joined.tastes, strict=True)])

    chance = users.tastes.map(len).mean() / len(CATEGORIES)
    assert on_taste(heldout) > 3 * chance
    assert on_taste(log[log.event == "purchase"]) > 3 * chance
    assert on_taste(log[log.event == "dislike"]) < on_taste(log)
    assert set(users.tastes.map(len)) == {1, 2}


def test_equal_arguments_give_equal_bytes_and_a_second_call_writes_nothing(shop, tmp_path):
    again = generate_shop(tmp_path / "again", items=100, users=30, seed=3)
    assert _digests(again.directory) == _digests(shop.directory)
    stamps = {p: p.stat().st_mtime_ns for p in again.directory.rglob("*")}
    start = time.perf_counter()
    assert generate_shop(again.directory, items=100, users=30, seed=3) == again
    assert time.perf_counter() - start < 0.5
    assert {p: p.stat().st_mtime_ns for p in again.directory.rglob("*")} == stamps

    # A smaller shop has the same items, and no file of the larger shop is left.
    smaller = generate_shop(again.directory, items=60, users=30, seed=3)
    whole = _digests(shop.directory)
    media = {name: digest for name, digest in _digests(smaller.directory).items() if "/" in name}
    assert media == {n: d for n, d in whole.items() if "/" in n and n[-9:-4] < "00060"}
    first = pd.read_parquet(shop.catalog).head(60)
    pd.testing.assert_frame_equal(pd.read_parquet(smaller.catalog), first)


def test_another_seed_gives_another_shop(shop, tmp_path):
    other = generate_shop(tmp_path, items=60, users=5, seed=4)
    for folder in ("images/*", "audio/*"):
        ours, theirs = (set(_digests(d, folder).values()) for d in (shop.directory, other.directory))
        # Only planted faults may be equal: an empty file, a fixed text and a fixed drawing.
        assert len(ours & theirs) <= 3
    ours, theirs = (pd.read_parquet(s.catalog).title.head(60).dropna() for s in (shop, other))
    assert len(set(ours) & set(theirs)) < 5


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_bytes(b"precious")
    (tmp_path / "shop.json").write_text('{"name": "mine"}')
    with pytest.raises(JobError, match="name a new directory"):
        generate_shop(tmp_path)
    assert (tmp_path / "images" / "mine.png").read_bytes() == b"precious"


def test_too_few_items_are_refused(tmp_path):
    with pytest.raises(JobError, match="at least 60"):
        generate_shop(tmp_path / "x", items=10)


def _picture_features(latent, rng):
    picture = draw_picture(latent, rng)
    grey = np.asarray(picture.convert("L").resize((96, 96)), float)
    texture = np.log1p(np.abs(np.fft.rfft2(grey)))[:48].reshape(24, 2, -1).mean(1)[:, :48]
    return np.concatenate([np.asarray(picture.resize((12, 12)), float).ravel() / 64, texture.ravel()])


def _sound_features(latent, rng):
    wave = play_sound(latent, rng)
    beats = np.log(np.abs(np.fft.rfft(np.abs(wave), 32_000))[2:34] + 1e-3)
    bands = np.abs(np.fft.rfft(wave, 32_000))[:16_000].reshape(-1, 25).mean(1)
    return np.concatenate([np.log(bands + 1e-3), beats])


@pytest.mark.parametrize("features", [_picture_features, _sound_features], ids=["picture", "sound"])
@pytest.mark.parametrize("field", ["category", "colour", "style", "mood"])
def test_a_linear_classifier_tells_two_values_of_a_class_apart(field, features):
    """The grades and the random noise differ between the items; the other classes are the same."""
    rng = np.random.default_rng(5)
    values = np.tile([1, 4], 60)
    latents = [
        replace(Latent(1, 1, 1, 1, tuple(grades)), **{field: value})
        for value, grades in zip(values.tolist(), rng.random((120, 4)).tolist(), strict=True)
    ]
    seen = np.stack([features(latent, rng) for latent in latents])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    assert model.fit(seen[:80], values[:80]).score(seen[80:], values[80:]) >= 0.8


def test_ogg_pages_carry_a_valid_checksum():
    wave = play_sound(Latent(0, 0, 0, 0, (0.5,) * 4), np.random.default_rng(0))
    ogg = encode_sound(wave, "ogg", serial=77)
    assert ogg[14:18] == (77).to_bytes(4, "little")
    page = bytearray(ogg[: 27 + ogg[26] + sum(ogg[27 : 27 + ogg[26]])])
    stated, page[22:26] = int.from_bytes(page[22:26], "little"), bytes(4)
    remainder = 0
    for octet in page:  # the CRC of RFC 3533, bit by bit
        remainder ^= octet << 24
        for _ in range(8):
            remainder = (remainder << 1) ^ (0x04C11DB7 if remainder & 0x80000000 else 0)
            remainder &= 0xFFFFFFFF
    assert remainder == stated
    back, _ = soundfile.read(io.BytesIO(ogg))
    assert np.corrcoef(back, wave)[0, 1] > 0.95
