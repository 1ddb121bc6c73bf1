"""Checkpoints of sentence-transformers that are refused before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.registry import describe_encoder
from unisono.transforms.encoders.sentence import st


def test_a_model_of_single_inputs_is_no_joint_encoder(clip: Path) -> None:
    with pytest.raises(JobError, match=r"encoders.joint.model.*does not take text \+ image in one input.*omni-modal"):
        st.load(EncoderSpec("joint", f"st/{clip}", (("parts", ("text", "image")),)))
    with pytest.raises(JobError, match=r"encoders.audio.model.*does not take audio"):
        st.load(EncoderSpec("audio", f"st/{clip}"))


def test_nothing_is_unpickled_and_no_code_is_run(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(JobError, match=r"pytorch_model.bin but no safetensors"):
        describe_encoder(EncoderSpec("image", f"st/{tmp_path / 'a'}"))
    shutil.copytree(clip, tmp_path / "b")
    (tmp_path / "b" / "modules.json").write_text(json.dumps([{"idx": 0, "path": "", "type": "os.system"}]))
    with pytest.raises(JobError, match=r"os.system.*never run"):
        describe_encoder(EncoderSpec("image", f"st/{tmp_path / 'b'}"))
