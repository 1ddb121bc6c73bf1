"""The demo: runs the whole job on a synthetic shop, and shows how much of the planted truth is found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.search import Searcher, print_hits
from unisono.pipelines.demo.shop import ShopPaths, generate_shop
from unisono.pipelines.launch import run_job
from unisono.pipelines.summary import plain_console
from unisono.transforms.base import nearest as quality
from unisono.transforms.base.columns import embeddings_of, in_sample
from unisono.transforms.base.extras import require_all
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.measure.rank_metrics import Ranked, measure_users
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.store.runs import Manifest, Store, read_table

_PAIRS = (("text", "image"), ("text", "audio"), ("image", "audio"))
_QUERY = "small teal kettle"


def run_demo(out: str, items: int) -> None:
    """Generates a shop, runs embed, profile and recommend on it, and prints the results.

    Args:
        out: the directory of the shop, the job file and the store.
        items: the number of items.

    Raises:
        JobError: there are too few items, the directory has other files where the shop should be, or a library of
            the extra `demo` is not installed.
    """
    require_all({"demo": ("PIL", "skimage", "soundfile", "soxr", "librosa", "numba")}, "demo")
    console = plain_console()
    base = Path(out)
    console.print(f"synthetic shop of {items:,} items in {base / 'shop'}", highlight=False)
    shop = generate_shop(base / "shop", items=items)
    job = write_job(base, shop, behaviour=True)
    manifest = run_job(str(job), None, [], items=True, users=True, recommend=True)
    assert manifest is not None  # because a local run has finished now
    store = Store(str(base / "store"))
    print_recovery(console, store, manifest, shop)
    print_searches(console, store, shop)
    console.print(
        f"\njob file {job}\ntry: unisono search --store {store.root} --text 'red lamp'"
        f"\nor: unisono recommend --config {job}",
        highlight=False,
    )


def write_job(base: Path, shop: ShopPaths, behaviour: bool = False) -> Path:
    """Writes the job file that a user would write for such a shop.

    Args:
        base: the directory of the job file; the shop must be in `base/shop`.
        shop: the shop.
        behaviour: True if behaviour is one of the modalities.

    Returns:
        The path of the job file.
    """
    path = base / "job.yaml"
    body = {
        "store": "store",
        "catalog": {
            "path": "shop/catalog.parquet",
            "id": "item_id",
            "text": ["title", "description"],
            "image": "image_uri",
            "audio": "audio_uri",
            "media_root": "shop",
        },
        "interactions": {
            "path": "shop/interactions.parquet",
            "user": "user_id",
            "item": "item_id",
            "time": "timestamp",
            "event": "event",
            "weights": {"view": 1, "cart": 3, "purchase": 5, "dislike": -3},
        },
        "profiles": {"half_life_days": 30},
        "ranking": {"k": 50},
        "limits": {"max_dead_letter_fraction": 0.2 if shop.counts["items"] < 500 else 0.02},
    }
    if behaviour:
        body["behaviour"] = {}
    path.write_text("# synthetic data, made by `unisono demo`\n" + yaml.safe_dump(body, sort_keys=False))
    return path


# --- recovery ----------------------------------------------------------------------------------------------


def _read_part(store: Store, manifest: Manifest, part: str, columns: list[str] | None = None) -> pa.Table:
    return pa.concat_tables([read_table(store, r, columns) for r in manifest.part(part)]).combine_chunks()


def heldout_retrieval(embeddings: pa.Table, dim: int = 64) -> dict[str, tuple[float, float]]:
    """Fits a space on half of the items, drawn by hash, and measures it on the other half.

    The measure is whether an item's embedding of one modality finds the item's embedding of another modality.

    Args:
        embeddings: all rows of embeddings/.
        dim: axes of the space.

    Returns:
        recall@10 and the recall@10 of random vectors, for each two modalities, in both directions.
    """
    seen = in_sample(embeddings["item_id"], 0.5)
    fitted, held = embeddings.filter(pa.array(seen)), embeddings.filter(pa.array(~seen))
    arrays = embeddings_of(fitted)
    moments = Moments.zero({m: x.shape[1] for m, (x, _) in arrays.items()}).add(arrays)
    space = fit_space(moments, SpaceSpec(dim=dim))
    out = {}
    for a, b in _PAIRS:
        (xa, has_a), (xb, has_b) = (embeddings_of(held)[m] for m in (a, b))
        both = has_a & has_b
        ya, yb = space.project(a, xa[both]), space.project(b, xb[both])
        chance = quality.chance_recall(int(both.sum()), 10)
        out[f"{a} → {b}"] = (quality.retrieval(ya, yb, (10,))["recall@10"], chance)
        out[f"{b} → {a}"] = (quality.retrieval(yb, ya, (10,))["recall@10"], chance)
    return out


def served_recall(served: pa.Table, shop: ShopPaths, k: int) -> tuple[pa.Array, np.ndarray]:
    """Measures which fraction of a user's held-out items is among the first k recommended items.

    Args:
        served: user_id, item_ids (best first).
        shop: the shop with the held-out interactions.
        k: the number of recommended items that count.

    Returns:
        The users who have held-out items, and the fraction for each of them, float64 [users].
    """
    heldout = pq.read_table(shop.heldout)
    users, lists = served["user_id"].combine_chunks(), served["item_ids"].combine_chunks()
    ids = pa.concat_arrays([lists.flatten(), heldout["item_id"].combine_chunks()]).unique()
    ranked = Ranked.of_lists(pc.index_in(lists.flatten(), ids).to_numpy(), pc.list_value_length(lists).to_numpy())
    user = pc.index_in(heldout["user_id"], users)
    known = user.is_valid().combine_chunks()
    item = pc.index_in(heldout["item_id"], ids).filter(known).to_numpy()
    recall = measure_users(ranked, (user.filter(known).to_numpy(), item), len(ids), [k])[f"recall@{k}"]
    some = ~np.isnan(recall)
    return users.filter(pa.array(some)), recall[some]


def popular_items(users: pa.Table, shop: ShopPaths, k: int) -> pa.Table:
    """Recommends to each user the items with the most events, without items that the user has an event with.

    Args:
        users: with a column user_id.
        shop: the shop with the catalogue and the interactions.
        k: the number of items to recommend.

    Returns:
        user_id, item_ids (best first).
    """
    log, ids = pq.read_table(shop.interactions), pq.read_table(shop.catalog, columns=["item_id"])["item_id"]
    log = log.filter(pc.is_in(log["item_id"], ids.combine_chunks()))
    item = pc.index_in(log["item_id"], ids.combine_chunks()).to_numpy()
    user = pc.index_in(log["user_id"], users["user_id"].combine_chunks()).to_numpy()
    events = np.bincount(item, minlength=len(ids)).astype(np.float32)
    best, _ = quality.top_k(np.ones((len(users), 1), np.float32), events[:, None], k, exclude=(user, item))
    offsets = pa.array(np.arange(len(users) + 1, dtype=np.int32) * best.shape[1])
    lists = pa.ListArray.from_arrays(offsets, ids.combine_chunks().take(pa.array(best.reshape(-1))))
    return pa.table({"user_id": users["user_id"], "item_ids": lists})


def taste_share(users: pa.Table, items: pa.Table, shop: ShopPaths, k: int = 10) -> tuple[float, float]:
    """Measures which fraction of a profile's nearest items is of a category that the user likes, by the planted truth.

    Args:
        users: user_id, vector.
        items: item_id, vector.
        shop: the shop with the planted truth.
        k: the number of nearest items.

    Returns:
        The mean fraction, and the mean fraction for random items.
    """
    truth_items, truth_users = pq.read_table(shop.truth_items), pq.read_table(shop.truth_users)
    row = pc.index_in(items["item_id"], truth_items["item_id"].combine_chunks())
    category, names = _codes(truth_items["category"].take(row))
    tastes = truth_users["tastes"].take(pc.index_in(users["user_id"], truth_users["user_id"].combine_chunks()))
    liked = np.zeros((len(users), len(names)), bool)
    flat = tastes.combine_chunks()
    liked[pc.list_parent_indices(flat).to_numpy(), pc.index_in(pc.list_flatten(flat), names).to_numpy()] = True
    vectors, profiles = (from_vector_column(t["vector"])[0] for t in (items, users))
    nearest, _ = quality.top_k(profiles, vectors, k)
    hit = np.take_along_axis(liked, category[nearest], axis=1)
    frequency = np.bincount(category, minlength=len(names)) / len(category)
    return float(hit.mean()), float((liked * frequency).sum(1).mean())


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary


def print_recovery(console: Console, store: Store, manifest: Manifest, shop: ShopPaths) -> None:
    """Prints how much of the planted truth is found again, each figure beside the figure of random vectors."""
    items = _read_part(store, manifest, "items", ["item_id", "vector"])
    users = _read_part(store, manifest, "users", ["user_id", "vector"])
    embeddings = _read_part(store, manifest, "embeddings")
    table = Table(
        "", "found", "chance", "",
        title="\nplanted truth that is found again (synthetic data)",
        title_justify="left", box=None, padding=(0, 2),
    )

    def row(what: str, found: float, chance: float, note: str = "") -> None:
        table.add_row(what, f"{found:.3f}", f"{chance:.3f}", note or f"{found / chance:.1f} × chance")

    for pair, (found, chance) in heldout_retrieval(embeddings).items():
        row(f"{pair} R@10, items held out", found, chance)
    truth = pq.read_table(shop.truth_items)
    truth = truth.take(pc.index_in(items["item_id"], truth["item_id"].combine_chunks()))
    vectors, _ = from_vector_column(items["vector"])
    for label in ("category", "colour", "mood"):
        codes, _ = _codes(truth[label])
        found, chance = quality.same_label_neighbours(vectors, codes, 10), quality.chance_same_label(codes)
        row(f"10 nearest items of the same {label}", found, chance)
    row("10 items nearest a profile, of a category that the user likes", *taste_share(users, items, shop))
    served = _read_part(store, manifest, "recommendations")
    by_all = served_recall(popular_items(served, shop, 20), shop, 20)[1].mean()
    found = served_recall(served, shop, 20)[1].mean()
    row("later purchases in 20 recommended", found, 20 / len(items), f"{found / by_all:.1f} × popularity, {by_all:.3f}")
    console.print(table)


# --- searches ----------------------------------------------------------------------------------------------


def print_searches(console: Console, store: Store, shop: ShopPaths) -> None:
    """Prints the results of a search by text, by image and by audio."""
    searcher = Searcher(PublishedRun.open(store))
    catalog = pq.read_table(shop.catalog, columns=["item_id", "title", "image_uri", "audio_uri"])
    faulty = pq.read_table(shop.truth_faults)["item_id"].combine_chunks()
    whole = catalog.filter(pc.invert(pc.is_in(catalog["item_id"], faulty))).drop_null()
    example = whole.slice(0, 1).to_pylist()[0]
    name = f"{example['item_id']} “{example['title']}”"
    for what, query in (
        (f"text “{_QUERY}”", searcher.embed_query("text", _QUERY)),
        (f"the picture of {name}", searcher.embed_query("image", (shop.directory / example["image_uri"]).read_bytes())),
        (f"the sound of {name}", searcher.embed_query("audio", (shop.directory / example["audio_uri"]).read_bytes())),
    ):
        print_hits(console, searcher.nearest(query, 5), f"\nsearch by {what}")
