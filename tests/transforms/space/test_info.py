"""What a space says about itself, as JSON and back, and from the files of earlier runs."""

import json

import pytest

from unisono.transforms.space.info import Comparison, FusionReport, ModalityShare, RefitReport, SpaceInfo

SHARE = ModalityShare(1.0, 0.5, 0.2, 3.0, 0.25, 0.5, 1.0)
FITTED = SpaceInfo(
    asked="auto",
    axes_asked=8,
    items={"image": 3, "text": 4},
    pairs={"image-text": 2},
    left_out={"audio": "0 of at least 2 items have it"},
    findings={"spectrum": [0.5, 0.25], "weighting": 1.0},
)
WHOLE = SpaceInfo(
    asked="gcca",
    axes_asked=8,
    items={"text": 4},
    unseen_pairs=("image-text",),
    unaligned=("image", "text"),
    findings={"training": {"epoch": 3}},
    fusion=FusionReport("weighted", True, {"text": SHARE}, {"reliability": {"text": 0.5}}),
    settings={"output_dim": None},
    encoder_ids={"text": "lite-text-1"},
    refit=RefitReport(
        "on_drift", True, "abcd", common=5, before=Comparison(0.1, 0.2), turned=Comparison(0.9, 0.8),
        rotation=[[1.0, 0.0], [0.0, 1.0]], inertia=0.5, mean_cosine=0.95, top10_overlap=0.85, drift=0.1, threshold=0.02,
    ),
    comparable=("abcd", "0123"),
)  # fmt: skip


@pytest.mark.parametrize("info", [SpaceInfo(), FITTED, WHOLE], ids=["nothing", "fitted", "whole"])
def test_json_round_trip(info):
    assert SpaceInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_a_step_that_did_not_take_place_writes_no_keys():
    assert SpaceInfo().to_json() == {}
    assert FITTED.to_json() == {
        "asked": "auto", "axes_asked": 8, "items": {"image": 3, "text": 4}, "pairs": {"image-text": 2},
        "unseen_pairs": [], "left_out": {"audio": "0 of at least 2 items have it"}, "unaligned": [],
        "spectrum": [0.5, 0.25], "weighting": 1.0,
    }  # fmt: skip
    body = WHOLE.to_json()
    assert body["training"] == {"epoch": 3}
    assert body["fusion"]["reliability"] == {"text": 0.5}
    assert body["fusion"]["modalities"]["text"]["share_raw"] == 0.25
    assert body["refit"]["turned"] == {"mean_cosine": 0.9, "top10_overlap": 0.8}
    assert "not_anchored" not in body["refit"]
    assert body["not_comparable"] == ""
    first = RefitReport("always", True).to_json()
    assert first == {"policy": "always", "refitted": True}


def test_files_of_earlier_runs_can_be_read():
    """An early space.json had neither a fusion report nor the keys of a refit."""
    early = {"asked": "auto", "axes_asked": 4, "items": {"text": 9}, "left_out": {}, "encoder_ids": {"text": "lite"}}
    info = SpaceInfo.from_json(early)
    assert info.encoder_ids == {"text": "lite"}
    assert info.settings is info.fusion is info.refit is info.comparable is None
    assert info.to_json()["encoder_ids"] == {"text": "lite"}
    refit = SpaceInfo.from_json({"refit": {"policy": "always", "refitted": True, "later": 1}}).refit
    assert refit == RefitReport("always", True)
