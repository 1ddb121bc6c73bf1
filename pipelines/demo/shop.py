"""A synthetic shop whose truth is known: items in three modalities, faults, users and their interactions.

Each item has a planted latent: a category, a colour, a style, a mood and four grades. Text, picture and sound
each see it through noise of their own, so no modality is perfect and together they tell more than one. Users
have tastes for categories and colours; their interactions follow from those and from the items' popularity.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unisono.pipelines.demo import media as demo_media
from unisono.pipelines.demo import text as demo_text
from unisono.pipelines.demo.media import CATEGORIES, COLOURS, GRADES, MOODS, STYLES, Latent
from unisono.transforms.base.errors import JobError, Reason

MODALITIES = ("text", "image", "audio")
END = datetime(2026, 11, 1, tzinfo=UTC)  # the shop's "now": fixed, so that a shop never depends on the clock
DAYS = 60
EVENTS = ("view", "cart", "purchase", "dislike")

_CLASSES = np.array([len(CATEGORIES), len(COLOURS), len(STYLES), len(MOODS)])
_MISSING = 0.1
_MARKER = "shop.json"
_ROW_GROUP = 500
_README = """This folder is SYNTHETIC: a shop that `unisono demo` generated (pipelines/demo_data.py).
No item, user, picture, sound or interaction in it is real. {items} items, {users} users, seed {seed}.

catalog.parquet       what a shop would have: item_id, title, description, image_uri, audio_uri
images/ audio/        the media that it names; {faults} inputs are broken on purpose (truth_faults.parquet)
interactions.parquet  user_id, item_id, timestamp, event: the {days} days before {end}
heldout.parquet       user_id, item_id: later positive interactions, for measuring
truth_*.parquet       the planted truth, for measuring only
"""


@dataclass(frozen=True)
class ShopPaths:
    """Where a generated shop lies, and how much is in it.

    Attributes:
        directory: `catalog.media_root`, too.
        counts: items, users, text, image, audio (items that name the modality, broken ones counted), faults,
            interactions, unknown_items (interactions with items that the catalogue does not hold), heldout.
    """

    directory: Path
    counts: dict[str, int]

    @property
    def catalog(self) -> Path:
        """item_id, title, description, image_uri, audio_uri; null where the modality is missing."""
        return self.directory / "catalog.parquet"

    @property
    def interactions(self) -> Path:
        """user_id, item_id, timestamp, event; in order of time."""
        return self.directory / "interactions.parquet"

    @property
    def heldout(self) -> Path:
        """user_id, item_id: later positive interactions, of items that the user has no event with."""
        return self.directory / "heldout.parquet"

    @property
    def truth_items(self) -> Path:
        """item_id, category, colour, style, mood, the grades, popularity."""
        return self.directory / "truth_items.parquet"

    @property
    def truth_users(self) -> Path:
        """user_id, tastes (one or two categories), colour (the favourite)."""
        return self.directory / "truth_users.parquet"

    @property
    def truth_faults(self) -> Path:
        """item_id, modality, reason (the expected code), uri, what."""
        return self.directory / "truth_faults.parquet"


# --- items -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """An item as planted; it depends on the seed and its own number only."""

    index: int
    latent: Latent
    popularity: float
    has: tuple[bool, bool, bool]  # text, image, audio

    @property
    def item_id(self) -> str:
        return f"item-{self.index:05d}"


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, stream, index))


def _latent(classes: np.ndarray, grades: np.ndarray) -> Latent:
    category, colour, style, mood = classes.tolist()
    size, depth, ornament, age = grades.tolist()
    return Latent(category, colour, style, mood, (size, depth, ornament, age))


def _plant(seed: int, index: int) -> _Item:
    rng = _generator(seed, 0, index)
    latent = _latent(rng.integers(_CLASSES), rng.random(4))
    popularity = float(rng.lognormal(0, 0.9))
    lost = rng.random(3) < _MISSING
    while lost.all():
        lost = rng.random(3) < _MISSING
    return _Item(index, latent, popularity, (not lost[0], not lost[1], not lost[2]))


def _disturb(latent: Latent, rng: np.random.Generator, wrong: float, deviation: float) -> Latent:
    """Gives the latent as one modality sees it: classes swapped at rate `wrong`, grades with noise."""
    planted = (latent.category, latent.colour, latent.style, latent.mood)
    classes = np.where(rng.random(4) < wrong, rng.integers(_CLASSES), planted)
    return _latent(classes, np.clip(latent.grades + rng.normal(0, deviation, 4), 0, 1))


# --- faults ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fault:
    """A way to break one modality: `spoil` makes the stored bytes of the good ones; None: no file."""

    modality: str
    suffix: str
    reason: Reason
    what: str
    spoil: Callable[[bytes], bytes | None]


_SVG = (
    b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="96" height="96">'
    b'<circle cx="48" cy="48" r="40" fill="teal"/></svg>\n'
)
_PROSE = b"This is not a picture.\n" * 20
_FAULTS = (
    _Fault("image", "png", Reason.EMPTY_FILE, "a picture of zero bytes", lambda good: b""),
    _Fault("image", "png", Reason.TRUNCATED, "a PNG cut at half", lambda good: good[: len(good) // 2]),
    _Fault("image", "png", Reason.NOT_AN_IMAGE, "text saved as .png", lambda good: _PROSE),
    _Fault("image", "svg", Reason.UNSUPPORTED_FORMAT, "a vector drawing", lambda good: _SVG),
    _Fault("image", "jpg", Reason.NOT_FOUND, "a URI without a file", lambda good: None),
    _Fault("audio", "ogg", Reason.NOT_AUDIO, "garbage saved as .ogg", lambda good: good[100:3000]),
    _Fault("audio", "wav", Reason.EMPTY_FILE, "a sound of zero bytes", lambda good: b""),
    _Fault("audio", "wav", Reason.TRUNCATED, "a WAV cut at half", lambda good: good[: len(good) // 2]),
    _Fault("text", "", Reason.EMPTY_TEXT, "a title of white space, no description", lambda good: None),
)


def _place_faults(items: list[_Item]) -> dict[int, _Fault]:
    """Chooses an item for each fault, near the catalogue's start: one that has this modality and another."""
    placed: dict[int, _Fault] = {}
    for number, fault in enumerate(_FAULTS):
        where = MODALITIES.index(fault.modality)
        for item in items[1 + 4 * number :]:
            if item.index not in placed and item.has[where] and sum(item.has) >= 2:
                placed[item.index] = fault
                break
        else:
            raise JobError(f"demo: items: {len(items)} leave no room for {fault.what}; ask for 100")
    return placed


# --- catalogue ---------------------------------------------------------------------------------------------


def _write_media(directory: Path, seed: int, item: _Item, modality: str, fault: _Fault | None) -> str:
    """Writes an item's picture or sound, broken if so planned, and gives its URI."""
    if modality == "image":
        rng = _generator(seed, 2, item.index)
        suffix = fault.suffix if fault else ("png" if rng.random() < 0.35 else "jpg")
        picture = demo_media.draw_picture(_disturb(item.latent, rng, 0.05, 0.08), rng)
        good = demo_media.encode_picture(picture, suffix)
        uri = f"images/{item.item_id}.{suffix}"
    else:
        rng = _generator(seed, 3, item.index)
        suffix = fault.suffix if fault else ("ogg" if rng.random() < 0.2 else "wav")
        sound = demo_media.play_sound(_disturb(item.latent, rng, 0.07, 0.10), rng)
        good = demo_media.encode_sound(sound, suffix, serial=item.index + 1)
        uri = f"audio/{item.item_id}.{suffix}"
    data = fault.spoil(good) if fault else good
    if data is not None:
        (directory / uri).write_bytes(data)
    return uri


def _write_catalog(directory: Path, seed: int, items: list[_Item], faults: dict[int, _Fault]) -> pa.Table:
    """Writes the media and gives the catalogue. Goes item by item, as each is drawn and played on its own."""
    rows = []
    for item in items:
        fault = faults.get(item.index)
        title = description = image = audio = None
        if item.has[0]:
            rng = _generator(seed, 1, item.index)
            title, description = demo_text.write_text(_disturb(item.latent, rng, 0.06, 0.08), rng)
        faulty = fault.modality if fault else None
        if faulty == "text":
            title, description = "   ", None
        if item.has[1]:
            image = _write_media(directory, seed, item, "image", fault if faulty == "image" else None)
        if item.has[2]:
            audio = _write_media(directory, seed, item, "audio", fault if faulty == "audio" else None)
        rows.append((item.item_id, title, description, image, audio))
    return _strings(("item_id", "title", "description", "image_uri", "audio_uri"), rows)


def _strings(names: Sequence[str], rows: Sequence[tuple[str | None, ...]]) -> pa.Table:
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    return pa.table(columns, names=list(names))


def _truth_items(items: list[_Item]) -> pa.Table:
    columns: dict[str, object] = {"item_id": [item.item_id for item in items]}
    for name, values in (("category", CATEGORIES), ("colour", COLOURS), ("style", STYLES), ("mood", MOODS)):
        columns[name] = [values[getattr(item.latent, name)] for item in items]
    grades = np.array([item.latent.grades for item in items])
    columns |= {name: grades[:, i] for i, name in enumerate(GRADES)}
    columns["popularity"] = [item.popularity for item in items]
    return pa.table(columns)


def _truth_faults(items: list[_Item], faults: dict[int, _Fault], catalog: pa.Table) -> pa.Table:
    uris = {m: catalog[f"{m}_uri"].to_pylist() for m in ("image", "audio")} | {"text": [None] * len(items)}
    rows = [
        (items[i].item_id, fault.modality, str(fault.reason), uris[fault.modality][i], fault.what)
        for i, fault in sorted(faults.items())
    ]
    return _strings(("item_id", "modality", "reason", "uri", "what"), rows)


# --- users -------------------------------------------------------------------------------------------------

_USER_BLOCK = 256  # users drawn together: bounds memory at block × items


def _draw_distinct(rng: np.random.Generator, log_weight: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` distinct columns per row, chance by weight, in order of drawing: int64 [rows, count].

    Gumbel top-k: Efraimidis and Spirakis 2006 in the form of Kool, van Hoof, Welling 2019.
    """
    keys = log_weight + rng.gumbel(size=log_weight.shape)
    chosen = np.argpartition(-keys, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(keys, chosen, 1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)


def _draw_block(
    rng: np.random.Generator, attraction: np.ndarray, popularity: np.ndarray, matches: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws a block's events and held-out items.

    Args:
        attraction: float64 [users, items], unnormalised log chances by taste and popularity.
        popularity: float64 [items], log chances by popularity alone.
        matches: bool [users, items], the item's category is among the user's tastes.

    Returns:
        events' user row and item, held-out items' user row and item: int64 [m], [m], [h], [h].
    """
    n, items = attraction.shape
    # Of the items that suit a user, a part stays unseen, for the held-out ones.
    wanted = np.minimum(rng.integers(11, 19, n), np.maximum(matches.sum(1) * 3 // 5, 1))
    suited = _draw_distinct(rng, attraction, min(18, items // 2))
    others = _draw_distinct(rng, np.broadcast_to(popularity, attraction.shape), min(12, items // 4))

    events = rng.integers(25, 41, n)
    row = np.repeat(np.arange(n), events)
    by_taste = rng.random(len(row)) < 0.78
    # The square root of a uniform turned round: earlier drawn items come back more often.
    near = 1 - np.sqrt(rng.random(len(row)))
    item = np.where(
        by_taste,
        suited[row, np.minimum((near * wanted[row]).astype(np.int64), suited.shape[1] - 1)],
        others[row, (near * others.shape[1]).astype(np.int64)],
    )
    fresh = attraction.copy()
    fresh[row, item] = -np.inf
    later = _draw_distinct(rng, fresh, 7)
    kept = np.arange(7) < rng.integers(3, 8, (n, 1))
    later_row, place = np.nonzero(kept)
    return row, item, later_row, later[later_row, place]


def _draw_events(rng: np.random.Generator, suits: np.ndarray) -> np.ndarray:
    """Draws event types, int64 [m] into EVENTS, by chances that depend on whether the item suits."""
    chances = np.where(suits[:, None], (0.66, 0.18, 0.15, 0.01), (0.76, 0.06, 0.03, 0.15))
    return (rng.random((len(suits), 1)) > chances.cumsum(1)[:, :-1]).sum(1)


def _make_users(seed: int, users: int, items: list[_Item]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Gives the truth about users, the interactions in order of time, and the held-out pairs."""
    category = np.array([item.latent.category for item in items])
    colour = np.array([item.latent.colour for item in items])
    popularity = np.log([item.popularity for item in items])
    item_ids = pa.array([item.item_id for item in items])
    user_ids = pa.array([f"user-{u:05d}" for u in range(users)])
    truths, logs, heldouts = [], [], []
    for start in range(0, users, _USER_BLOCK):
        rng = _generator(seed, 4, start)
        n = min(_USER_BLOCK, users - start)
        block = user_ids.slice(start, n)
        tastes = rng.permuted(np.tile(np.arange(len(CATEGORIES)), (n, 1)), axis=1)[:, :2]
        tastes[rng.random(n) < 0.5, 1] = -1  # one taste only
        favourite = rng.integers(0, len(COLOURS), n)
        matches = (category == tastes[:, :1]) | (category == tastes[:, 1:])
        attraction = popularity + 4.0 * matches + 1.0 * (colour == favourite[:, None])
        row, item, later_row, later_item = _draw_block(rng, attraction, popularity, matches)

        flat = pa.array(np.array(CATEGORIES)[tastes[tastes >= 0]])
        offsets = np.concatenate([[0], (tastes >= 0).sum(1).cumsum()]).astype(np.int32)
        truths.append(pa.table({
            "user_id": block,
            "tastes": pa.ListArray.from_arrays(pa.array(offsets), flat),
            "colour": pa.array(np.array(COLOURS)[favourite]),
        }))  # fmt: skip
        seen = item_ids.take(pa.array(item)).to_numpy(zero_copy_only=False)
        gone = np.flatnonzero(rng.random(len(row)) < 0.02)
        seen[gone] = [f"retired-{number:05d}" for number in rng.integers(0, 500, len(gone)).tolist()]
        before = rng.integers(1, DAYS * 86_400_000_000, len(row))
        when = np.datetime64(END.replace(tzinfo=None), "us") - before.astype("timedelta64[us]")
        logs.append(pa.table({
            "user_id": block.take(pa.array(row)),
            "item_id": pa.array(seen, pa.string()),
            "timestamp": pa.array(when, pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
            "event": pa.array(np.array(EVENTS)[_draw_events(rng, matches[row, item])]),
        }))  # fmt: skip
        heldouts.append(pa.table({
            "user_id": block.take(pa.array(later_row)),
            "item_id": item_ids.take(pa.array(later_item)),
        }))  # fmt: skip
    log = pa.concat_tables(logs).sort_by([("timestamp", "ascending"), ("user_id", "ascending")])
    return pa.concat_tables(truths), log, pa.concat_tables(heldouts)


# --- the shop ----------------------------------------------------------------------------------------------


def _read_marker(directory: Path) -> dict[str, Any] | None:
    """Gives what the marker says; None where there is none, or where it is some other file of that name."""
    try:
        found = json.loads((directory / _MARKER).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("synthetic") is True and "wanted" in found else None


def _write_marker(directory: Path, content: dict[str, object]) -> None:
    beside = directory / f"{_MARKER}.tmp"
    beside.write_text(json.dumps({"synthetic": True} | content, indent=1))
    beside.replace(directory / _MARKER)


def _claim(directory: Path, wanted: dict[str, object]) -> ShopPaths | None:
    """Gives the shop that is already there if it is the wanted one; otherwise clears the place for a new one.

    Raises:
        JobError: the directory holds something that is not a generated shop.
    """
    found = _read_marker(directory)
    if found:
        if found["wanted"] == wanted and "counts" in found:
            return ShopPaths(directory, found["counts"])
        for folder in ("images", "audio"):
            shutil.rmtree(directory / folder, ignore_errors=True)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise JobError(f"demo: {directory} holds something else than a generated shop; name a new directory")
    for folder in ("images", "audio"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    _write_marker(directory, {"wanted": wanted})  # without counts: not yet complete
    return None


def generate_shop(directory: Path, items: int = 2000, users: int = 400, seed: int = 7) -> ShopPaths:
    """Generates a synthetic shop, or gives the one in `directory` that the same code and arguments made.

    Equal arguments give equal bytes; an item's content depends on the seed and its own number only.

    Args:
        directory: new, empty, or a shop generated before (which is replaced when it differs).
        items: at least about 60, for the planted faults to find room.

    Raises:
        JobError: too few items or users, or the directory holds something else.
    """
    if items < 60 or users < 1:
        raise JobError(f"demo: {items} items and {users} users; at least 60 items and 1 user are needed")
    directory = Path(directory)
    code = hashlib.sha256()
    for source in (__file__, demo_media.__file__, demo_text.__file__):
        code.update(Path(source).read_bytes())
    wanted: dict[str, object] = {"items": items, "users": users, "seed": seed, "code": code.hexdigest()[:16]}
    if found := _claim(directory, wanted):
        return found

    planted = [_plant(seed, index) for index in range(items)]
    faults = _place_faults(planted)
    catalog = _write_catalog(directory, seed, planted, faults)
    truth_users, interactions, heldout = _make_users(seed, users, planted)
    counts = {
        "items": items,
        "users": users,
        "text": items - catalog["title"].null_count,
        "image": items - catalog["image_uri"].null_count,
        "audio": items - catalog["audio_uri"].null_count,
        "faults": len(faults),
        "interactions": len(interactions),
        "unknown_items": pc.sum(pc.starts_with(interactions["item_id"], "retired-")).as_py(),
        "heldout": len(heldout),
    }
    shop = ShopPaths(directory, counts)
    for path, table in (
        (shop.catalog, catalog),
        (shop.interactions, interactions),
        (shop.heldout, heldout),
        (shop.truth_items, _truth_items(planted)),
        (shop.truth_users, truth_users),
        (shop.truth_faults, _truth_faults(planted, faults, catalog)),
    ):
        label = {"synthetic": "true", "generator": "unisono pipelines/demo_data.py", "seed": str(seed)}
        pq.write_table(table.replace_schema_metadata(label), path, row_group_size=_ROW_GROUP)
    end = f"{END:%Y-%m-%d}"
    text = _README.format(items=items, users=users, seed=seed, faults=len(faults), days=DAYS, end=end)
    (directory / "README.txt").write_text(text)
    _write_marker(directory, {"wanted": wanted, "counts": counts})
    return shop
