"""The places that weights come from, and checkpoints that are refused before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.transforms.encoders.clip.scenes import spec_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.clip import towers as family
from unisono.transforms.encoders.registry import describe_encoder

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_hub_repository_is_the_same_encoder_as_its_directory(clip: Path, hub_cache: Path) -> None:
    shutil.copytree(clip, hub_cache / "models--shop--tiny" / "snapshots" / COMMIT)
    from_hub = EncoderSpec("image", "open_clip/shop/tiny", (("revision", COMMIT),))
    assert family.describe(from_hub) == family.describe(spec_of(clip))


def test_a_tag_is_the_same_encoder_as_its_file(sparse_weights: Path, hub_cache: Path) -> None:
    snapshot = hub_cache / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(sparse_weights, snapshot / "open_clip_model.safetensors")
    tag = spec_of("laion2b_s34b_b79k", model="open_clip/ViT-B-32", revision=COMMIT)
    assert family.describe(tag) == family.describe(spec_of(sparse_weights, model="open_clip/ViT-B-32"))
    with pytest.raises(JobError, match=r"weights: open_clip_model\.safetensors of laion.* cannot be fetched"):
        family.describe(spec_of("laion2b_s34b_b79k", model="open_clip/ViT-B-32", revision="absent"))


@pytest.fixture(scope="module")
def sparse_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete safetensors file that lacks nearly every tensor of any architecture."""
    path = tmp_path_factory.mktemp("named") / "weights.safetensors"
    from safetensors.torch import save_file

    save_file({"logit_scale": torch.ones(())}, path)
    return path


def _pickled(path: Path) -> None:
    (path / "open_clip_model.safetensors").rename(path / "open_clip_pytorch_model.bin")


def _drop(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


REFUSED: dict[str, tuple[Callable[[Path], object], str, dict, str]] = {
    "no-weights": (
        _drop("open_clip_model.safetensors"), "open_clip", {}, r"weights: .* holds no open_clip_model\.safetensors",
    ),
    "pickled": (_pickled, "open_clip", {}, r"pytorch_model\.bin but no safetensors.*never unpickled.*save_file"),
    "no-config": (_drop("open_clip_config.json"), "open_clip", {}, r"no file open_clip_config\.json.*ViT-B-32"),
    "another-architecture": (lambda p: None, "open_clip/ViT-B-32", {}, r"has embed_dim 24, but ViT-B-32 has 512"),
    "unknown-architecture": (
        _drop("open_clip_config.json"), "open_clip/ViT-B-33", {}, r"model: 'open_clip/ViT-B-33' is not an arch.*ViT-B-",
    ),
    "nowhere": (lambda p: None, "open_clip/ViT-B-32", {"weights": "/no/such.pt"}, r"no file or directory /no/such"),
    "missing": (lambda p: None, "open_clip/ViT-B-32", {"weights": 3}, r"weights: got 3"),
    "tag": (lambda p: None, "open_clip/ViT-B-32", {"weights": "laion9b"}, r"no tag 'laion9b' of ViT-B-32; it has: "),
    "quick-gelu": (
        lambda p: None, "open_clip/ViT-B-32", {"weights": "openai"}, r"write open_clip/ViT-B-32-quickgelu",
    ),
    "decode": (lambda p: None, "open_clip", {"decode": "fast"}, r"decode: got 'fast'; allowed: reduced, exact"),
    "option": (lambda p: None, "open_clip", {"pool": 1}, r"pool: no such option; allowed: batch_size, compile, decode"),
    "device": (lambda p: None, "open_clip", {"device": "tpu"}, r"device: got 'tpu'; allowed: auto, cpu, cuda"),
    "audio": (lambda p: None, "open_clip", {"modality": "audio"}, r"is not an encoder of audio; families with audio"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_checkpoint_is_one_line_before_any_work(name: str, clip: Path, tmp_path: Path) -> None:
    change, model, options, message = REFUSED[name]
    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    with pytest.raises(JobError, match=message) as caught:
        describe_encoder(spec_of(**{"path": tmp_path, "model": model, **options}))
    assert str(caught.value).startswith("encoders.")
    assert "\n" not in str(caught.value)


def test_pickled_file_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(JobError, match=r"weights\.pt is not a safetensors file; weights are never unpickled: where"):
        family.describe(spec_of(tmp_path / "weights.pt", model="open_clip/ViT-B-32"))


def test_weights_of_another_shape_are_refused_on_loading(sparse_weights: Path) -> None:
    spec = spec_of(sparse_weights, model="open_clip/ViT-B-32")
    assert family.describe(spec).dim == 512
    with pytest.raises(JobError, match=r"cannot be loaded \(Error\(s\) in loading state_dict for CLIP: Missing key"):
        family.load(spec)


def test_a_file_that_was_cut_off_is_refused(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(JobError, match="incomplete or damaged"):
        family.describe(spec_of(tmp_path))
