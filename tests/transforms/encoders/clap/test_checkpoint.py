"""CLAP checkpoints that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_json
from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.registry import describe_encoder, get_encoder


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(JobError, match=r"encoders.audio.model.*'bert'; allowed: clap"):
        describe_encoder(EncoderSpec("audio", f"clap/{tmp_path}"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"truncation": "cut"}, r"truncation 'cut' and padding 'repeatpad'; allowed", id="truncation"),
        pytest.param({"padding": "mirror"}, r"padding 'mirror'; allowed", id="padding"),
        pytest.param({"max_length_s": 0.01}, r"a window of 480 samples, shorter than one frame", id="window"),
    ],
)
def test_features_that_are_not_supported_are_refused(
    change: dict[str, Any], message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(checkpoints["rand_trunc"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "preprocessor_config.json"
    write_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(JobError, match=r"^encoders\.audio\.model: .*" + message):
        describe_encoder(EncoderSpec("audio", str(tmp_path)))


def test_a_checkpoint_without_a_weight_of_the_tower_is_refused_on_loading(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoints["rand_trunc"], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("text_projection.linear1.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    spec = EncoderSpec("text", f"clap/{tmp_path}", (("device", "cpu"),))
    assert describe_encoder(spec).dim == 24
    with pytest.raises(JobError, match=r"lack text_projection\.linear1\.weight; copy the whole checkpoint"):
        get_encoder(spec)
    get_encoder(EncoderSpec("audio", f"clap/{tmp_path}", (("device", "cpu"),)))  # the other tower is complete
