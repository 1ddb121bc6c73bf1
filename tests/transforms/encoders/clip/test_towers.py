"""CLIP's embeddings, compared with those of open_clip itself, for every kind of picture and of text."""

from __future__ import annotations

import io
import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.checkpoints import TEXTS, save_open_clip, write_json
from tests.media_files import image_file
from tests.paths import STAMPS
from tests.transforms.encoders.clip.scenes import scene, spec_of
from tests.transforms.encoders.cosines import cosines
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.encoders.base import EncoderSpec, text_tower_of
from unisono.transforms.encoders.clip import towers as family
from unisono.transforms.encoders.registry import describe_encoder, get_encoder

torch = pytest.importorskip("torch")
reference = pytest.importorskip("open_clip")


PICTURES = STAMPS / "images"


def encode(spec: EncoderSpec, raw: list) -> np.ndarray:
    encoder = family.load(spec)
    return encoder.encode([encoder.prepare(r) for r in raw])


def open_clips_own(path: Path, images: list[Image.Image]) -> np.ndarray:
    """Encodes pictures with open_clip's own transform and `encode_image`."""
    model, _, transform = reference.create_model_and_transforms(f"local-dir:{path}")
    with torch.no_grad():
        return model.eval().encode_image(torch.stack([transform(i) for i in images])).numpy()


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image_file(scene(), "JPEG", quality=95, exif=exif)


def _alpha(form: str, **options: object) -> bytes:
    rgba = scene().convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    return image_file(rgba, form, **options)


def _sixteen_bit() -> bytes:
    grey = np.asarray(scene().convert("L")).astype(np.uint16) * 257
    return image_file(Image.fromarray(grey), "PNG")


# Each file, and how the picture that Pillow opens is changed before open_clip gets it, where open_clip's own transform
# would treat it differently (transparency, orientation, 16 bits).
VARIANTS: dict[str, tuple[bytes, Callable[[Image.Image], Image.Image]]] = {
    "jpeg": (image_file(scene(), "JPEG", quality=90), lambda i: i),
    "jpeg-grey": (image_file(scene().convert("L"), "JPEG", quality=90), lambda i: i.convert("RGB")),
    "jpeg-progressive": (image_file(scene(), "JPEG", quality=90, progressive=True), lambda i: i),
    "jpeg-cmyk": (image_file(scene().convert("CMYK"), "JPEG", quality=95), lambda i: i),
    "png": (image_file(scene(), "PNG"), lambda i: i),
    "png-palette": (image_file(scene().quantize(64), "PNG"), lambda i: i.convert("RGB")),
    "png-16-bit": (
        _sixteen_bit(),
        lambda i: Image.fromarray((np.asarray(i) // 257).astype(np.uint8)).convert("RGB"),
    ),
    "png-alpha": (_alpha("PNG"), _over_white),
    "webp": (image_file(scene(), "WEBP", quality=90), lambda i: i),
    "webp-alpha": (_alpha("WEBP", lossless=True), _over_white),
    "gif-first-frame": (
        image_file(scene(), "GIF", save_all=True, append_images=[scene(seed=9)]), lambda i: i.convert("RGB"),
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
    # The checkpoint tells pictures apart; otherwise the lines above would prove nothing.
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
    got = encode(spec_of(tmp_path), [image_file(i, "PNG") for i in images])
    assert cosines(got, expected).min() >= 0.9999


@pytest.mark.skipif(not PICTURES.is_dir(), reason="the stamps are not here")
def test_jpegs_at_reduced_scale_are_close_and_those_at_full_scale_exact(tmp_path: Path) -> None:
    """Real pictures at the input size of a real model. The weights are random."""
    config = reference.get_model_config("ViT-B-32")
    config["vision_cfg"]["layers"] = 2  # all pixels go through; more layers would only take time
    config["text_cfg"] |= {"layers": 1, "context_length": 8}
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": config})
    torch.manual_seed(0)
    model = reference.create_model(f"local-dir:{tmp_path}")
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    large = sorted(p for p in PICTURES.iterdir() if p.suffix != ".svg" and min(Image.open(p).size) >= 300)[:8]
    pictures = [_over_white(Image.open(p)).convert("RGB").resize((640, 480)) for p in large]
    files = [image_file(p, "JPEG", quality=90) for p in pictures]
    expected = open_clips_own(tmp_path, [Image.open(io.BytesIO(f)) for f in files])
    assert cosines(encode(spec_of(tmp_path), files), expected).min() >= 0.999
    assert cosines(encode(spec_of(tmp_path, decode="exact"), files), expected).min() >= 0.99999
    assert cosines(expected[:4], expected[4:]).max() < 0.999


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


def test_embedding_depends_on_its_batch_by_rounding_only(clip: Path) -> None:
    encoder = family.load(spec_of(clip))
    batch = [encoder.prepare(image_file(scene(seed=s), "PNG")) for s in range(5)]
    together = encoder.encode(batch)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([b]) for b in batch]), atol=1e-6)
    assert (encoder.encode(batch) == together).all()
    assert encoder.encode([]).shape == (0, encoder.dim)
    assert [encoder.cost(b) for b in batch] == [1] * 5
    with pytest.raises(InputError) as caught:
        encoder.prepare(b"no picture")
    assert caught.value.reason is Reason.NOT_AN_IMAGE


def test_bfloat16_changes_embeddings_a_little(clip: Path) -> None:
    files = [image_file(scene(seed=s), "PNG") for s in range(4)]
    exact, half = encode(spec_of(clip), files), encode(spec_of(clip, dtype="bfloat16"), files)
    assert half.dtype == np.float32
    assert 1e-6 < 1 - cosines(exact, half).min() < 1e-2


def _edit(section: str, **values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        whole = json.loads((path / "open_clip_config.json").read_text())
        whole[section] = {**whole[section], **values}
        write_json(path / "open_clip_config.json", whole)

    return change


# A change of the files, a change of the options, and whether the ids of the image and the text encoder change.
CHANGES: dict[str, tuple[Callable[[Path], object], dict, bool, bool]] = {
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


def test_loading_drops_only_what_open_clip_logs_in_this_thread(clip: Path) -> None:
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    before = (root.level, root.filters[:], logging.root.manager.disable)
    root.addHandler(handler)
    try:
        with family._quiet_open_clip():
            logging.warning("of open_clip")
            logging.error("an error of open_clip")
            logging.getLogger("unisono.other").warning("of another logger")
            other = threading.Thread(target=logging.warning, args=("of another thread",))
            other.start()
            other.join()
        logging.warning("after loading")
        family.load(spec_of(clip))
    finally:
        root.removeHandler(handler)
    assert heard == ["an error of open_clip", "of another logger", "of another thread", "after loading"]
    assert (root.level, root.filters[:], logging.root.manager.disable) == before
