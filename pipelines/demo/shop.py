"""Generates a synthetic shop with a known truth: items in three modalities, faults, users and interactions.

Each item has planted attributes: a category, a colour, a style, a mood and four grades. Text, picture and sound express
them with different noise, so no modality is perfect, and all together say more than one. Users like categories and
colours; their interactions depend on these tastes and on the items' popularity.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unisono.pipelines.demo import items as demo_items
from unisono.pipelines.demo import pictures, sounds, text
from unisono.pipelines.demo import users as demo_users
from unisono.pipelines.demo.items import CATEGORIES, COLOURS, GRADES, MODALITIES, MOODS, STYLES, Item
from unisono.transforms.base.errors import JobError, Reason

_SOURCES = (__file__, *(str(module.__file__) for module in (demo_items, text, pictures, sounds, demo_users)))
_MARKER = "shop.json"
_ROW_GROUP = 500
_GENERATOR = "unisono pipelines/demo/shop.py"  # metadata of the tables
_README = """This folder is SYNTHETIC: a shop that `unisono demo` generated (pipelines/demo/shop.py).
No item, user, picture, sound or interaction in it is real. {items} items, {users} users, seed {seed}.

catalog.parquet       the shop's catalogue: item_id, title, description, image_uri, audio_uri
images/ audio/        the media that the catalogue names; {faults} inputs are broken on purpose (truth_faults.parquet)
interactions.parquet  user_id, item_id, timestamp, event: the {days} days before {end}
heldout.parquet       user_id, item_id: later positive interactions, for measuring
truth_*.parquet       the planted truth, for measuring only
"""


@dataclass(frozen=True)
class ShopPaths:
    """The paths of a generated shop's files, and what is in them.

    Attributes:
        directory: the directory of the shop; also the job's `catalog.media_root`.
        counts: the numbers of `items`, `users`, `text`, `image` and `audio` (items that have the modality, broken or
            not), `faults`, `interactions`, `unknown_items` (interactions with items that are not in the catalogue) and
            `heldout` (interactions).
    """

    directory: Path
    counts: dict[str, int]

    @property
    def catalog(self) -> Path:
        """item_id, title, description, image_uri, audio_uri; null where the item lacks the modality."""
        return self.directory / "catalog.parquet"

    @property
    def interactions(self) -> Path:
        """user_id, item_id, timestamp, event; sorted by time."""
        return self.directory / "interactions.parquet"

    @property
    def heldout(self) -> Path:
        """user_id, item_id of later positive interactions, with items that the user has no event with."""
        return self.directory / "heldout.parquet"

    @property
    def truth_items(self) -> Path:
        """item_id, category, colour, style, mood, size, depth, ornament, age, popularity."""
        return self.directory / "truth_items.parquet"

    @property
    def truth_users(self) -> Path:
        """user_id, tastes (one or two categories), colour (the favourite)."""
        return self.directory / "truth_users.parquet"

    @property
    def truth_faults(self) -> Path:
        """item_id, modality, reason (of the expected dead letter), uri, what (a description of the fault)."""
        return self.directory / "truth_faults.parquet"


# --- faults ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fault:
    """A way to break one modality of an item.

    Attributes:
        modality: the modality that is broken.
        suffix: the suffix of the broken file.
        reason: the reason of the dead letter that it must become.
        what: a description, for a person.
        spoil: makes the bytes of the broken file from those of a good one; None means that there is no file.
    """

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


def _place_faults(items: Sequence[Item]) -> dict[int, _Fault]:
    """Chooses an item for each fault, near the start of the catalogue, which has this modality and another one.

    Raises:
        JobError: there are too few items.
    """
    placed: dict[int, _Fault] = {}
    for number, fault in enumerate(_FAULTS):
        where = MODALITIES.index(fault.modality)
        for item in items[1 + 4 * number :]:
            if item.index not in placed and item.has[where] and sum(item.has) >= 2:
                placed[item.index] = fault
                break
        else:
            raise JobError(f"demo: --items: {len(items)} items leave no room for {fault.what}; ask for 100")
    return placed


# --- catalogue ---------------------------------------------------------------------------------------------


def _write_media(directory: Path, seed: int, item: Item, modality: str, fault: _Fault | None) -> str:
    """Writes an item's picture or sound, broken if there is a fault, and returns its URI."""
    if modality == "image":
        rng = demo_items.generator(seed, 2, item.index)
        suffix = fault.suffix if fault else ("png" if rng.random() < 0.35 else "jpg")
        picture = pictures.draw_picture(demo_items.disturb(item.latent, rng, 0.05, 0.08), rng)
        good = pictures.encode_picture(picture, suffix)
        uri = f"images/{item.item_id}.{suffix}"
    else:
        rng = demo_items.generator(seed, 3, item.index)
        suffix = fault.suffix if fault else ("ogg" if rng.random() < 0.2 else "wav")
        sound = sounds.play_sound(demo_items.disturb(item.latent, rng, 0.07, 0.10), rng)
        good = sounds.encode_sound(sound, suffix, serial=item.index + 1)
        uri = f"audio/{item.item_id}.{suffix}"
    data = fault.spoil(good) if fault else good
    if data is not None:
        (directory / uri).write_bytes(data)
    return uri


def _write_catalog(directory: Path, seed: int, items: Sequence[Item], faults: dict[int, _Fault]) -> pa.Table:
    """Writes all media and returns the catalogue."""
    rows = []
    for item in items:
        fault = faults.get(item.index)
        title = description = image = audio = None
        if item.has[0]:
            rng = demo_items.generator(seed, 1, item.index)
            title, description = text.write_text(demo_items.disturb(item.latent, rng, 0.06, 0.08), rng)
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


def _truth_items(items: Sequence[Item]) -> pa.Table:
    columns: dict[str, object] = {"item_id": [item.item_id for item in items]}
    for name, values in (("category", CATEGORIES), ("colour", COLOURS), ("style", STYLES), ("mood", MOODS)):
        columns[name] = [values[getattr(item.latent, name)] for item in items]
    grades = np.array([item.latent.grades for item in items])
    columns |= {name: grades[:, i] for i, name in enumerate(GRADES)}
    columns["popularity"] = [item.popularity for item in items]
    return pa.table(columns)


def _truth_faults(items: Sequence[Item], faults: dict[int, _Fault], catalog: pa.Table) -> pa.Table:
    uris = {m: catalog[f"{m}_uri"].to_pylist() for m in ("image", "audio")} | {"text": [None] * len(items)}
    rows = [
        (items[i].item_id, fault.modality, str(fault.reason), uris[fault.modality][i], fault.what)
        for i, fault in sorted(faults.items())
    ]
    return _strings(("item_id", "modality", "reason", "uri", "what"), rows)


# --- the shop ----------------------------------------------------------------------------------------------


def _read_marker(directory: Path) -> dict[str, Any] | None:
    """Reads the file that marks a generated shop; None means that there is no such file."""
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
    """Returns the shop in the directory if it is the wanted one; otherwise prepares the directory for a new shop.

    Raises:
        JobError: the directory has files and no generated shop.
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
    _write_marker(directory, {"wanted": wanted})  # A marker without counts means that the shop is not complete.
    return None


def generate_shop(directory: Path, items: int = 2000, users: int = 400, seed: int = 7) -> ShopPaths:
    """Generates a synthetic shop, or returns the shop in `directory` if the same code and arguments made it.

    Equal arguments give equal bytes. An item depends only on the seed and on the item's number.

    Args:
        directory: a new or empty directory, or a generated shop, which is replaced if it differs.
        items: the number of items, at least 60, because each planted fault needs an item.
        users: the number of users, at least 1.
        seed: the seed of all random numbers.

    Raises:
        JobError: there are too few items or users, or the directory has files and no generated shop.
    """
    if items < 60 or users < 1:
        raise JobError(f"demo: {items} items and {users} users; at least 60 items and 1 user are needed")
    directory = Path(directory)
    wanted: dict[str, object] = {"items": items, "users": users, "seed": seed, "code": _hash_of_code()}
    if found := _claim(directory, wanted):
        return found

    planted = [demo_items.plant(seed, index) for index in range(items)]
    faults = _place_faults(planted)
    catalog = _write_catalog(directory, seed, planted, faults)
    truth_users, interactions, heldout = demo_users.make_users(seed, users, planted)
    tables = {
        "catalog": catalog,
        "interactions": interactions,
        "heldout": heldout,
        "truth_items": _truth_items(planted),
        "truth_users": truth_users,
        "truth_faults": _truth_faults(planted, faults, catalog),
    }
    shop = ShopPaths(directory, _count(tables))
    for name, table in tables.items():
        label = {"synthetic": "true", "generator": _GENERATOR, "seed": str(seed)}
        pq.write_table(table.replace_schema_metadata(label), getattr(shop, name), row_group_size=_ROW_GROUP)
    end = f"{demo_users.END:%Y-%m-%d}"
    readme = _README.format(items=items, users=users, seed=seed, faults=len(faults), days=demo_users.DAYS, end=end)
    (directory / "README.txt").write_text(readme)
    _write_marker(directory, {"wanted": wanted, "counts": shop.counts})
    return shop


def _hash_of_code() -> str:
    code = hashlib.sha256()
    for source in _SOURCES:
        code.update(Path(source).read_bytes())
    return code.hexdigest()[:16]


def _count(tables: dict[str, pa.Table]) -> dict[str, int]:
    """Counts what is in a shop; see `ShopPaths.counts`."""
    catalog, log = tables["catalog"], tables["interactions"]
    return {
        "items": len(catalog),
        "users": len(tables["truth_users"]),
        "text": len(catalog) - catalog["title"].null_count,
        "image": len(catalog) - catalog["image_uri"].null_count,
        "audio": len(catalog) - catalog["audio_uri"].null_count,
        "faults": len(tables["truth_faults"]),
        "interactions": len(log),
        "unknown_items": pc.sum(pc.starts_with(log["item_id"], "retired-")).as_py(),
        "heldout": len(tables["heldout"]),
    }
