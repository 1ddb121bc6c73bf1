"""CLIP towers: open_clip's own embeddings for every kind of picture, and what is refused before any work."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.checkpoints import TEXTS, save_open_clip, write_json
from tests.paths import STAMPS
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encoders.base import EncoderSpec, text_tower_of
from unisono.transforms.encoders.clip import towers as family
from unisono.transforms.encoders.registry import describe_encoder, get_encoder
from unisono.transforms.media.images import fit_picture

torch = pytest.importorskip("torch")
reference = pytest.importorskip("open_clip")
logging.getLogger().setLevel(logging.ERROR)

PICTURES = STAMPS / "images"


def spec_of(path: Path | str, modality: str = "image", model: str = "open_clip", **options: object) -> EncoderSpec:
    return EncoderSpec(modality, model, tuple(sorted({"weights": str(path), "device": "cpu", **options}.items())))


def encode(spec: EncoderSpec, raw: list) -> np.ndarray:
    encoder = family.load(spec)
    return encoder.encode([encoder.prepare(r) for r in raw])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def save(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def scene(height: int = 90, width: int = 130, seed: int = 0) -> Image.Image:
    """Smooth colours, edges and some noise: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    centre_y, centre_x, wave = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(5, 25)
    disc = ((y / height - centre_y) ** 2 + (x / width - centre_x) ** 2 < 0.06) * 120
    channels = [x * 200 / width + disc, y * 255 / height, 128 + 90 * np.sin(x / wave) * np.cos(y / 11) - disc]
    noisy = np.stack(channels, axis=-1) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    save_open_clip(path)
    return path


# --- parity: pictures --------------------------------------------------------------------------------------


def open_clips_own(path: Path, images: list[Image.Image]) -> np.ndarray:
    """The library's reference path: its transform, its `encode_image`."""
    model, _, transform = reference.create_model_and_transforms(f"local-dir:{path}")
    with torch.no_grad():
        return model.eval().encode_image(torch.stack([transform(i) for i in images])).numpy()


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(scene(), "JPEG", quality=95, exif=exif)


def _alpha(form: str, **options: object) -> bytes:
    rgba = scene().convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    return save(rgba, form, **options)


def _sixteen_bit() -> bytes:
    grey = np.asarray(scene().convert("L")).astype(np.uint16) * 257
    return save(Image.fromarray(grey), "PNG")


# Each with what open_clip is given: the file as Pillow opens it wherever its own transform reads that rightly.
VARIANTS: dict[str, tuple[bytes, Callable[[Image.Image], Image.Image]]] = {
    "jpeg": (save(scene(), "JPEG", quality=90), lambda i: i),
    "jpeg-grey": (save(scene().convert("L"), "JPEG", quality=90), lambda i: i.convert("RGB")),
    "jpeg-progressive": (save(scene(), "JPEG", quality=90, progressive=True), lambda i: i),
    "jpeg-cmyk": (save(scene().convert("CMYK"), "JPEG", quality=95), lambda i: i),
    "png": (save(scene(), "PNG"), lambda i: i),
    "png-palette": (save(scene().quantize(64), "PNG"), lambda i: i.convert("RGB")),
    "png-16-bit": (
        _sixteen_bit(),
        lambda i: Image.fromarray((np.asarray(i) // 257).astype(np.uint8)).convert("RGB"),
    ),
    "png-alpha": (_alpha("PNG"), _over_white),
    "webp": (save(scene(), "WEBP", quality=90), lambda i: i),
    "webp-alpha": (_alpha("WEBP", lossless=True), _over_white),
    "gif-first-frame": (
        save(scene(), "GIF", save_all=True, append_images=[scene(seed=9)]), lambda i: i.convert("RGB"),
    ),
    **{f"exif-{o}": (_turned(o), lambda i: ImageOps.exif_transpose(i)) for o in (3, 6, 7)},
}  # fmt: skip


def test_every_kind_of_picture_is_embedded_as_by_open_clip(clip: Path) -> None:
    given = [prepare(Image.open(io.BytesIO(data))) for data, prepare in VARIANTS.values()]
    expected = open_clips_own(clip, given)
    got = encode(spec_of(clip, decode="exact"), [data for data, _ in VARIANTS.values()])
    assert got.dtype == np.float32
    assert got.shape == expected.shape == (len(VARIANTS), family.describe(spec_of(clip)).dim)
    close = dict(zip(VARIANTS, cosines(got, expected).tolist(), strict=True))
    assert {name: c for name, c in close.items() if c < 0.9999} == {}
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    # The checkpoint tells pictures apart, or the lines above would show nothing.
    others = open_clips_own(clip, [scene(seed=s) for s in range(4)])
    assert cosines(others[:2], others[2:]).max() < 0.995


SHAPES = [(90, 130), (130, 90), (32, 32), (20, 20), (33, 500), (500, 33), (64, 31), (1, 3)]
PREPROCESSING: dict[str, tuple[str, dict]] = {
    "default": ("vit", {}),
    "squash-bilinear": (
        "vit", {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
    ),
    "longest": ("vit", {"resize_mode": "longest", "fill_color": 127}),
    "oblong-shortest": ("vit-quickgelu-oblong", {}),
    "oblong-squash": ("vit-quickgelu-oblong", {"resize_mode": "squash"}),
    "oblong-longest": ("vit-quickgelu-oblong", {"resize_mode": "longest", "interpolation": "bilinear"}),
    "resnet": ("resnet", {}),
    "siglip-like": ("siglip-like", {"resize_mode": "squash"}),
    "timm": ("timm", {}),
    "coca": ("coca", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PREPROCESSING)
def test_every_preprocessing_and_shape_of_picture(name: str, tmp_path: Path) -> None:
    kind, preprocess = PREPROCESSING[name]
    save_open_clip(tmp_path, kind, preprocess=preprocess)
    shapes = [s for s in SHAPES if min(s) > 1] if "longest" in name else SHAPES
    images = [scene(*shape, seed=i) for i, shape in enumerate(shapes)]
    expected = open_clips_own(tmp_path, images)
    got = encode(spec_of(tmp_path), [save(i, "PNG") for i in images])
    assert cosines(got, expected).min() >= 0.9999


def test_fitted_pixels_are_torchvisions_to_one_level() -> None:
    for shape in SHAPES:
        image = scene(*shape)
        expected = reference.image_transform(32, is_train=False, mean=(0,) * 3, std=(1,) * 3)(image) * 255
        got = fit_picture(image, (32, 32)).astype(int).transpose(2, 0, 1)
        assert np.abs(got - expected.numpy().round()).max() <= 1


@pytest.mark.skipif(not PICTURES.is_dir(), reason="the stamps are not here")
def test_jpegs_at_reduced_scale_are_close_and_whole_ones_exact(tmp_path: Path) -> None:
    """On real pictures, at a real model's size; weights are random and wide."""
    config = reference.get_model_config("ViT-B-32")
    config["vision_cfg"]["layers"] = 2  # the picture goes through whole; depth costs time only
    config["text_cfg"] |= {"layers": 1, "context_length": 8}
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": config})
    torch.manual_seed(0)
    model = reference.create_model(f"local-dir:{tmp_path}")
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    large = sorted(p for p in PICTURES.iterdir() if p.suffix != ".svg" and min(Image.open(p).size) >= 300)[:8]
    pictures = [_over_white(Image.open(p)).convert("RGB").resize((640, 480)) for p in large]
    files = [save(p, "JPEG", quality=90) for p in pictures]
    expected = open_clips_own(tmp_path, [Image.open(io.BytesIO(f)) for f in files])
    assert cosines(encode(spec_of(tmp_path), files), expected).min() >= 0.999
    assert cosines(encode(spec_of(tmp_path, decode="exact"), files), expected).min() >= 0.99999
    assert cosines(expected[:4], expected[4:]).max() < 0.999


# --- parity: texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "siglip-like", "timm", "coca"])
def test_texts_are_embedded_as_by_open_clip(kind: str, tmp_path: Path) -> None:
    save_open_clip(tmp_path, kind)
    model = reference.create_model(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        expected = model.encode_text(reference.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)).numpy()
    got = encode(spec_of(tmp_path, "text"), TEXTS)
    assert cosines(got, expected).min() >= 0.99999
    assert cosines(got[:-1], got[1:]).max() < 0.995


def test_an_image_encoder_brings_its_text_tower(clip: Path) -> None:
    image = family.load(spec_of(clip, decode="exact", batch_size=3))
    tower = text_tower_of(image)
    assert tower is not None
    assert tower.dim == image.dim
    alone = get_encoder(spec_of(clip, "text", batch_size=3))
    assert (tower.encode([tower.prepare(t) for t in TEXTS]) == alone.encode([alone.prepare(t) for t in TEXTS])).all()
    assert text_tower_of(alone) is None


# --- shape of an encoder -----------------------------------------------------------------------------------


def test_embedding_depends_on_its_batch_by_rounding_only(clip: Path) -> None:
    encoder = family.load(spec_of(clip))
    batch = [encoder.prepare(save(scene(seed=s), "PNG")) for s in range(5)]
    together = encoder.encode(batch)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([b]) for b in batch]), atol=1e-6)
    assert (encoder.encode(batch) == together).all()
    assert encoder.encode([]).shape == (0, encoder.dim)
    assert [encoder.cost(b) for b in batch] == [1] * 5
    with pytest.raises(InputError) as caught:
        encoder.prepare(b"no picture")
    assert caught.value.reason is Reason.NOT_AN_IMAGE


def test_bfloat16_by_choice(clip: Path) -> None:
    files = [save(scene(seed=s), "PNG") for s in range(4)]
    exact, half = encode(spec_of(clip), files), encode(spec_of(clip, dtype="bfloat16"), files)
    assert half.dtype == np.float32
    assert 1e-6 < 1 - cosines(exact, half).min() < 1e-2


# --- encoder_id --------------------------------------------------------------------------------------------


def _edit(section: str, **values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        whole = json.loads((path / "open_clip_config.json").read_text())
        whole[section] = {**whole[section], **values}
        write_json(path / "open_clip_config.json", whole)

    return change


CHANGES: dict[str, tuple[Callable[[Path], object], dict, bool, bool]] = {  # … does the image's id, the text's id?
    "moved": (lambda p: None, {}, False, False),
    "renamed": (
        lambda p: (p / "open_clip_model.safetensors").rename(p / "model.safetensors"), {}, False, False,
    ),
    "device-batch-threads": (lambda p: None, {"device": "auto", "batch_size": 5, "compile": True}, False, False),
    "weights": (lambda p: save_open_clip(p, seed=1), {}, True, True),
    "mean": (_edit("preprocess_cfg", mean=[0.5, 0.5, 0.5]), {}, True, False),
    "resize": (_edit("preprocess_cfg", resize_mode="squash"), {}, True, False),
    "quick-gelu": (_edit("model_cfg", quick_gelu=True), {}, True, True),
    "dtype": (lambda p: None, {"dtype": "bfloat16"}, True, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_encoder_id_changes_when_the_output_could(name: str, clip: Path, tmp_path: Path) -> None:
    change, options, *differ = CHANGES[name]
    before = [family.describe(spec_of(clip, m)) for m in ("image", "text")]
    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    specs = [spec_of(tmp_path, m, **options) for m in ("image", "text")]
    after = [family.describe(s) for s in specs]
    assert [b.encoder_id != a.encoder_id for b, a in zip(before, after, strict=True)] == differ
    if name in ("moved", "dtype"):
        loaded = family.load(specs[0])
        assert (loaded.encoder_id, loaded.dim) == tuple(after[0])


def test_decoding_and_pooling_are_in_the_id(clip: Path, tmp_path: Path) -> None:
    ids = {describe_encoder(spec_of(clip, decode=d)).encoder_id for d in ("exact", "reduced")}
    save_open_clip(tmp_path, "siglip-like")
    ids.add(describe_encoder(spec_of(tmp_path)).encoder_id)
    whole = json.loads((tmp_path / "open_clip_config.json").read_text())
    whole["model_cfg"]["vision_cfg"]["pool_type"] = "tok"
    write_json(tmp_path / "open_clip_config.json", whole)
    ids.add(describe_encoder(spec_of(tmp_path)).encoder_id)
    assert len(ids) == 4


# --- where weights come from, and refusals -----------------------------------------------------------------


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
    with pytest.raises(JobError, match=r"weights: the hub does not give open_clip_model\.safetensors of laion"):
        family.describe(spec_of("laion2b_s34b_b79k", model="open_clip/ViT-B-32", revision="absent"))


@pytest.fixture(scope="module")
def sparse_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file that is whole, and lacks nearly every tensor of any architecture."""
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
    "another-architecture": (lambda p: None, "open_clip/ViT-B-32", {}, r"embed_dim 24, and ViT-B-32 has 512"),
    "unknown-architecture": (
        _drop("open_clip_config.json"), "open_clip/ViT-B-33", {}, r"model: 'open_clip/ViT-B-33' names no arch.*ViT-B-",
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
    "audio": (lambda p: None, "open_clip", {"modality": "audio"}, r"no audio encoder; families with audio"),
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
    with pytest.raises(JobError, match=r"weights\.pt is no safetensors file; weights are never unpickled: save them"):
        family.describe(spec_of(tmp_path / "weights.pt", model="open_clip/ViT-B-32"))


def test_weights_of_another_shape_are_refused_on_loading(sparse_weights: Path) -> None:
    spec = spec_of(sparse_weights, model="open_clip/ViT-B-32")
    assert family.describe(spec).dim == 512
    with pytest.raises(JobError, match=r"cannot be loaded \(Error\(s\) in loading state_dict for CLIP: Missing key"):
        family.load(spec)


def test_a_cut_file_is_refused(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(JobError, match="no whole safetensors file"):
        family.describe(spec_of(tmp_path))


