"""Families by the name of a model, their libraries, and one encoder for each spec."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders import registry
from unisono.transforms.encoders.base import Encoder, EncoderInfo, EncoderSpec
from unisono.transforms.encoders.registry import (
    FAMILIES,
    Family,
    describe_encoder,
    family_of,
    get_encoder,
    may_take_queries,
)


@pytest.mark.parametrize(
    ("modality", "model", "family"),
    [
        ("text", "lite", "lite"),
        ("audio", "laion/clap-htsat-unfused", "clap"),
        ("text", "clap/laion/clap-htsat-unfused", "clap"),
        ("text", "sentence-transformers/all-MiniLM-L6-v2", "transformers"),
        ("text", "/models/minilm", "transformers"),
        ("image", "open_clip/ViT-B-32", "open_clip"),
        ("joint", "st/google/embeddinggemma-2", "st"),
    ],
)
def test_a_model_belongs_to_a_family(modality: str, model: str, family: str) -> None:
    assert family_of(EncoderSpec(modality, model)) == family


@pytest.mark.parametrize(
    ("modality", "model", "able"),
    [("joint", "lite", "st"), ("image", "some/model", "lite, open_clip, st"), ("audio", "open_clip", "clap, lite, st")],
)
def test_a_family_without_the_modality_is_refused(modality: str, model: str, able: str) -> None:
    message = rf"^encoders\.{modality}\.model: {model!r} is not an encoder of {modality}; families with .*: {able}$"
    with pytest.raises(JobError, match=message):
        family_of(EncoderSpec(modality, model))


def test_every_family_can_be_imported_and_has_its_two_functions() -> None:
    for family in FAMILIES.values():
        module = family.load()
        assert callable(module.describe)
        assert callable(module.load)
    assert not may_take_queries(EncoderSpec("image", "lite"))
    assert may_take_queries(EncoderSpec("image", "open_clip/ViT-B-32"))


# --- a new family ------------------------------------------------------------------------------------------


class Lengths:
    """An encoder of texts by their length, in a family of its own."""

    encoder_id, dim, batch_cost = "lengths-1", 1, 4

    def prepare(self, raw: str) -> int:
        return len(raw)

    def cost(self, prepared: int) -> int:
        return 1

    def encode(self, batch: Any) -> np.ndarray:
        return np.array([[n] for n in batch], np.float32)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[EncoderSpec]:
    """Adds a family by one module and one entry of the table; returns the specs that it has loaded."""
    loaded: list[EncoderSpec] = []
    module: Any = types.ModuleType("new_family")

    def load(spec: EncoderSpec) -> Encoder:
        loaded.append(spec)
        return Lengths()

    module.load, module.describe = load, lambda spec: EncoderInfo("lengths-1", 1)
    monkeypatch.setitem(sys.modules, "new_family", module)
    entry = Family("new_family", {"text": {}, "image": {"image": ["absent"]}})
    monkeypatch.setitem(FAMILIES._entries, "lengths", entry)
    monkeypatch.setattr(registry, "_loaded", {})
    return loaded


def test_a_family_is_one_module_and_one_entry(lengths: list[EncoderSpec]) -> None:
    spec = EncoderSpec("text", "lengths/any")
    assert describe_encoder(spec) == ("lengths-1", 1)
    encoder = get_encoder(spec)
    assert encoder.encode([encoder.prepare("abc")]).tolist() == [[3.0]]
    assert get_encoder(EncoderSpec("text", "lengths/any")) is encoder
    assert get_encoder(EncoderSpec("text", "lengths/other")) is not encoder
    assert lengths == [spec, EncoderSpec("text", "lengths/other")]


# --- missing libraries -------------------------------------------------------------------------------------


def test_a_missing_library_is_told_before_the_family_is_imported(lengths: list[EncoderSpec]) -> None:
    sys.modules["new_family"] = None  # type: ignore[assignment]
    for function in (describe_encoder, get_encoder):
        with pytest.raises(JobError, match=r"^encoders\.image: lengths needs absent, which is not installed; "):
            function(EncoderSpec("image", "lengths"))
    assert lengths == []


@pytest.mark.parametrize(
    ("spec", "absent", "message"),
    [
        pytest.param(
            EncoderSpec("image", "lite"), ["skimage"],
            "encoders.image: lite needs scikit-image, which is not installed; pip install 'unisono[image]'", id="lite",
        ),
        pytest.param(
            EncoderSpec("audio", "lite"), ["librosa", "soxr"],
            "encoders.audio: lite needs librosa and soxr, which are not installed; pip install 'unisono[audio]'",
            id="lite-audio",
        ),
        pytest.param(
            EncoderSpec("text", "some/model"), ["torch"],
            "encoders.text: some/model needs torch, which is not installed; pip install 'unisono[models]'",
            id="transformers",
        ),
        pytest.param(
            EncoderSpec("audio", "clap/a"), ["transformers", "soundfile"],
            "encoders.audio: clap/a needs transformers and soundfile, which are not installed; "
            "pip install 'unisono[models,audio]'",
            id="clap",
        ),
        pytest.param(
            EncoderSpec("image", "open_clip/ViT-B-32"), ["open_clip"],
            "encoders.image: open_clip/ViT-B-32 needs open_clip_torch, which is not installed; "
            "pip install 'unisono[models]'",
            id="open_clip",
        ),
        pytest.param(
            EncoderSpec("joint", "st/a", (("parts", ("text", "image")),)), ["PIL", "sentence_transformers", "soxr"],
            "encoders.joint: st/a needs sentence-transformers and pillow, which are not installed; "
            "pip install 'unisono[omni,image]'",
            id="joint",
        ),
    ],
)  # fmt: skip
def test_each_family_names_what_it_lacks(
    spec: EncoderSpec, absent: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in absent:  # None means that an import fails
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(JobError) as caught:
        describe_encoder(spec)
    assert str(caught.value) == message


def test_lite_text_needs_no_optional_library() -> None:
    assert FAMILIES["lite"].needs["text"] == {}
