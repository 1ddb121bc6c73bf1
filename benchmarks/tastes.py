"""Measures recommendations on the demo's synthetic tastes: recall of later events, compared with popularity.

    python -m benchmarks.tastes [--items 2000] [--users 400] [--k 20]

Runs the demo's own job (the graph of `unisono demo`), then only `recommend` with changed settings. Prints one JSON
object: recall@k over all users, and over the users that were generated with two tastes. All data are synthetic.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from unisono.pipelines.demo.demo import popular_items, served_recall, write_job
from unisono.pipelines.demo.shop import ShopPaths, generate_shop
from unisono.pipelines.graph import nightly
from unisono.pipelines.job.load import load_job
from unisono.pipelines.job.plan import plan_run
from unisono.pipelines.launch import beam_options, launch
from unisono.transforms.store.runs import read_table

SETTINGS: dict[str, dict[str, dict[str, object]]] = {
    "learned": {},
    "learned, popularity bonus": {"ranking": {"popularity_bonus": 0.6}},
    "learned, no trend": {"ranking": {"trend": 0}},
    "interests by weight": {"ranking": {"interests": "weighted", "popularity_bonus": 0.6}},
    "profile": {"ranking": {"interests": "profile", "popularity_bonus": 0.6}},
    "profile, no bonus": {"ranking": {"interests": "profile"}},
}


def serve(base: Path, shop: ShopPaths, name: str, items: bool, changes: dict[str, dict[str, object]]) -> pa.Table:
    """Runs the demo's job with changed settings and returns the published recommendations.

    Args:
        base: directory of the demo.
        shop: the demo's files.
        name: id of the run.
        items: whether the run makes items and users too; otherwise it only recommends.
        changes: settings by section of the job file.
    """
    body = yaml.safe_load(write_job(base, shop, behaviour=True).read_text())
    for section, keys in changes.items():
        body[section] = {**body.get(section, {}), **keys}
    (base / "changed.yaml").write_text(yaml.safe_dump(body))
    plan = plan_run(load_job(str(base / "changed.yaml")), name, items=items, users=items, recommend=True)
    launch(lambda root: nightly.build(root, plan), beam_options([]), {})
    return pa.concat_tables([read_table(plan.run.store, r) for r in plan.run.store.published().part("recommendations")])


def main() -> None:
    """Runs every setting and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("items", 2000), ("users", 400), ("k", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unisono-tastes-") as folder:
        base = Path(folder)
        shop = generate_shop(base / "shop", items=args.items, users=args.users)
        truth = pq.read_table(shop.truth_users)
        two = truth.filter(pc.equal(pc.list_value_length(truth["tastes"]), 2))["user_id"].combine_chunks()

        def measure(served: pa.Table) -> dict[str, float]:
            users, recall = served_recall(served.combine_chunks(), shop, args.k)
            of_two = pc.is_in(users, two).to_numpy(zero_copy_only=False)
            return {"all": round(float(recall.mean()), 4), "two tastes": round(float(recall[of_two].mean()), 4)}

        found = {}
        for number, (name, changes) in enumerate(SETTINGS.items()):
            served = serve(base, shop, f"r{number}", number == 0, changes)
            found[name] = measure(served)
        found["popularity"] = measure(popular_items(served, shop, args.k))
    ratios = {
        "over popularity": round(found["learned"]["all"] / found["popularity"]["all"], 2),
        "learned over profile, two tastes": round(found["learned"]["two tastes"] / found["profile"]["two tastes"], 3),
    }
    print(json.dumps({"ratio": ratios, f"recall@{args.k}": found, **vars(args)}, indent=1))


if __name__ == "__main__":
    main()
