"""Pictures of the synthetic shop. A picture expresses its item's attributes and has noise of its own."""

from __future__ import annotations

import colorsys
import io
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

from unisono.pipelines.demo.items import CATEGORIES, COLOURS, MOODS, STYLES, Latent

_CANVAS = 208  # pixels a side; about twice as many as in the saved picture, because shrinking smooths the edges

_RGB = tuple[int, int, int]
# A part of a silhouette: layer, tone, outline and width. The layer is `behind`, `body` or `front`; only the body gets
# the pattern. The tone is `dark`, `light` or `leaf`; the body has none. The outline is [points, 2] in −1 … 1, with y
# downwards. The width is the stroke's width, or 0 if the outline is filled.
_Part = tuple[str, str, np.ndarray, float]


class _Paint(NamedTuple):
    """The colour of an item: hue in degrees, saturation and value in 0 … 1, and the tones made from them."""

    hue: float
    saturation: float
    value: float
    tones: dict[str, _RGB]


# --- outlines ----------------------------------------------------------------------------------------------


def _oval(cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, 28))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], 1)


def _box(x0: float, y0: float, x1: float, y1: float, r: float = 0.05) -> np.ndarray:
    corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
    return np.concatenate([_oval(x, y, r, r, a, a + 90)[::4] for x, y, a in corners])


def _line(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points)


def _mirrored(*right: tuple[float, float]) -> np.ndarray:
    half = np.array(right)
    return np.concatenate([half, half[::-1] * (-1, 1)])


_SILHOUETTES: dict[str, tuple[_Part, ...]] = {
    "backpack": (
        ("behind", "dark", _oval(0, -0.7, 0.2, 0.22, 180, 360), 0.09),
        ("behind", "dark", _box(-0.76, -0.05, 0.76, 0.62, 0.14), 0),
        ("body", "", _box(-0.6, -0.72, 0.6, 0.82, 0.34), 0),
        ("front", "dark", _box(-0.4, 0.16, 0.4, 0.64, 0.12), 0),
        ("front", "light", _line((-0.38, -0.12), (0.38, -0.12)), 0.05),
    ),
    "lamp": (
        ("behind", "dark", _box(-0.06, -0.1, 0.06, 0.75), 0),
        ("behind", "dark", _box(-0.4, 0.68, 0.4, 0.84, 0.07), 0),
        ("behind", "light", _oval(0, 0.02, 0.14, 0.14), 0),
        ("body", "", _mirrored((0.3, -0.85), (0.66, 0.02)), 0),
        ("front", "light", _line((-0.66, 0.02), (0.66, 0.02)), 0.05),
    ),
    "mug": (
        ("behind", "dark", _oval(0.5, 0.05, 0.36, 0.34, -90, 90), 0.13),
        ("body", "", _box(-0.65, -0.55, 0.52, 0.72, 0.16), 0),
        ("front", "light", _oval(-0.065, -0.52, 0.585, 0.13), 0),
        ("front", "dark", _oval(-0.065, -0.52, 0.5, 0.08), 0),
    ),
    "chair": (
        ("behind", "dark", _line((-0.4, 0.25), (-0.52, 0.92)), 0.1),
        ("behind", "dark", _line((0.4, 0.25), (0.52, 0.92)), 0.1),
        ("body", "", _box(-0.46, -0.88, 0.46, 0.12, 0.2), 0),
        ("body", "", _box(-0.62, 0.06, 0.62, 0.4, 0.13), 0),
        ("front", "dark", _line((-0.56, 0.07), (0.56, 0.07)), 0.035),
    ),
    "guitar": (
        ("behind", "dark", _box(-0.07, -0.85, 0.07, 0.1), 0),
        ("behind", "dark", _box(-0.13, -1.0, 0.13, -0.78), 0),
        ("body", "", _oval(0, 0.08, 0.36, 0.3), 0),
        ("body", "", _oval(0, 0.52, 0.52, 0.42), 0),
        ("front", "dark", _oval(0, 0.3, 0.15, 0.15), 0),
        ("front", "light", _line((0, -0.8), (0, 0.66)), 0.03),
        ("front", "dark", _box(-0.22, 0.62, 0.22, 0.72, 0.03), 0),
    ),
    "sneaker": (
        ("body", "", _line((-0.88, 0.4), (-0.86, -0.4), (-0.56, -0.48), (-0.3, -0.2), (0.1, -0.06),
                           (0.56, 0.05), (0.86, 0.2), (0.92, 0.42)), 0),
        ("front", "light", _box(-0.92, 0.36, 0.96, 0.56, 0.09), 0),
        ("front", "light", _line((-0.26, -0.02), (-0.08, -0.24)), 0.05),
        ("front", "light", _line((-0.06, 0.06), (0.12, -0.16)), 0.05),
        ("front", "dark", _line((-0.86, -0.3), (-0.86, 0.36)), 0.09),
    ),
    "watch": (
        ("behind", "dark", _box(-0.27, -0.98, 0.27, 0.98, 0.1), 0),
        ("behind", "dark", _box(0.5, -0.09, 0.7, 0.09, 0.04), 0),
        ("body", "", _oval(0, 0, 0.6, 0.6), 0),
        ("front", "light", _oval(0, 0, 0.4, 0.4), 0),
        ("front", "dark", _line((0, -0.3), (0, 0), (0.2, 0.1)), 0.05),
    ),
    "tent": (
        ("behind", "dark", _line((-0.1, -0.86), (0.04, -0.66)), 0.05),
        ("behind", "dark", _line((0.1, -0.86), (-0.04, -0.66)), 0.05),
        ("body", "", _mirrored((0.02, -0.74), (0.98, 0.66)), 0),
        ("front", "dark", _line((0, -0.2), (0.3, 0.66), (-0.3, 0.66)), 0),
        ("front", "light", _line((0, -0.2), (0.16, 0.66), (0.3, 0.66)), 0),
    ),
    "kettle": (
        ("behind", "dark", _oval(0, -0.25, 0.44, 0.5, 180, 360), 0.1),
        ("body", "", _line((0.36, 0.1), (0.86, -0.36), (0.98, -0.26), (0.5, 0.5)), 0),
        ("body", "", _mirrored((0.26, -0.3), (0.5, -0.1), (0.64, 0.3), (0.56, 0.72)), 0),
        ("front", "dark", _oval(0, -0.3, 0.29, 0.07), 0),
        ("front", "dark", _oval(0, -0.4, 0.08, 0.08), 0),
        ("front", "dark", _box(-0.58, 0.66, 0.58, 0.78), 0),
    ),
    "headphones": (
        ("behind", "dark", _oval(0, 0.1, 0.67, 0.82, 180, 360), 0.13),
        ("body", "", _box(-0.9, 0, -0.46, 0.74, 0.2), 0),
        ("body", "", _box(0.46, 0, 0.9, 0.74, 0.2), 0),
        ("front", "dark", _box(-0.5, 0.08, -0.36, 0.66, 0.06), 0),
        ("front", "dark", _box(0.36, 0.08, 0.5, 0.66, 0.06), 0),
    ),
    "vase": (
        ("behind", "leaf", _line((0, -0.4), (-0.02, -0.8)), 0.05),
        ("behind", "leaf", _line((0, -0.4), (0.22, -0.72)), 0.05),
        ("behind", "leaf", _line((0, -0.4), (-0.24, -0.66)), 0.05),
        ("behind", "light", _oval(-0.02, -0.86, 0.12, 0.12), 0),
        ("behind", "light", _oval(0.26, -0.76, 0.1, 0.1), 0),
        ("behind", "light", _oval(-0.28, -0.7, 0.1, 0.1), 0),
        ("body", "", _mirrored((0.2, -0.5), (0.24, -0.26), (0.5, 0.06), (0.52, 0.4), (0.3, 0.86)), 0),
        ("front", "dark", _line((-0.22, -0.48), (0.22, -0.48)), 0.07),
    ),
    "camera": (
        ("behind", "dark", _box(-0.32, -0.62, 0.32, -0.3, 0.08), 0),
        ("behind", "dark", _box(0.5, -0.52, 0.76, -0.3, 0.04), 0),
        ("body", "", _box(-0.9, -0.44, 0.9, 0.6, 0.15), 0),
        ("front", "dark", _oval(0, 0.1, 0.4, 0.4), 0),
        ("front", "light", _oval(0, 0.1, 0.28, 0.28), 0),
        ("front", "dark", _oval(0, 0.1, 0.18, 0.18), 0),
        ("front", "light", _box(0.52, -0.3, 0.76, -0.14, 0.03), 0),
    ),
}  # fmt: skip

_HUES = dict(zip(COLOURS, (0, 27, 50, 125, 213, 272, 328, 210), strict=True))  # degrees
# The colours of two opposite corners of the backdrop, by mood: hue in degrees, saturation, value.
_BACKDROPS = dict(zip(MOODS, (
    ((200, 0.10, 0.97), (205, 0.22, 0.86)),
    ((50, 0.22, 1.00), (35, 0.36, 0.97)),
    ((225, 0.35, 0.42), (240, 0.45, 0.26)),
    ((300, 0.12, 0.98), (265, 0.26, 0.90)),
    ((40, 0.26, 0.72), (75, 0.32, 0.54)),
), strict=True))  # fmt: skip


# --- pictures ----------------------------------------------------------------------------------------------


def _rgb(hue: float, saturation: float, value: float) -> _RGB:
    """Converts a colour; the hue is in degrees, and saturation and value are cut to 0 … 1."""
    s, v = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    r, g, b = colorsys.hsv_to_rgb(hue / 360 % 1, s, v)
    return round(255 * r), round(255 * g), round(255 * b)


@cache
def _pattern(style: str) -> Image.Image:
    """Draws a style's pattern, larger than the canvas: each picture cuts its own piece out of it."""
    from PIL import Image, ImageChops, ImageDraw

    side = 2 * _CANVAS
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for a in range(0, side, 32):
        if style == "nautical":
            draw.rectangle((0, a, side, a + 12), fill=255)
        elif style == "heritage":
            draw.rectangle((a, 0, a + 10, side), fill=120)
        elif style == "alpine":
            zigzag = [(x, a + (0 if x // 16 % 2 else 14)) for x in range(0, side + 16, 16)]
            draw.line(zigzag, fill=255, width=7)
        for b in range(0, side, 32):
            x, y = b + (a // 32 % 2) * 16, a + 12
            if style == "playful":
                draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=255)
            elif style == "botanical":
                for dx, dy in ((0, -7), (6, -2), (4, 6), (-4, 6), (-6, -2)):
                    draw.ellipse((x + dx - 5, y + dy - 5, x + dx + 5, y + dy + 5), fill=210)
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=0)
    if style == "heritage":
        across = image.transpose(Image.Transpose.ROTATE_90)
        image = ImageChops.add(image, across)
    return image


@cache
def _shade() -> Image.Image:
    """Draws the mask of the shadow on the right side of the body."""
    from PIL import Image

    ramp = np.clip(np.linspace(-60, 110, _CANVAS), 0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(ramp, (_CANVAS, _CANVAS)).copy())


def _backdrop(rng: np.random.Generator, mood: str, age: float) -> Image.Image:
    """Draws a slanted gradient between the mood's two colours; age moves it towards sepia."""
    from PIL import Image

    jitter = rng.normal(0, (8, 0.03, 0.03), (2, 3))
    near, far = (_rgb(*(np.array(c) + j)) for c, j in zip(_BACKDROPS[mood], jitter, strict=True))
    ends = np.array([near, far], float)
    ends += age * 0.35 * (np.array([196.0, 164.0, 112.0]) - ends)
    a, b = rng.uniform(0.2, 0.8, 2)
    corner = np.array([[0.0, a], [b, 1.0]])[..., None]
    small = ends[0] * (1 - corner) + ends[1] * corner
    return Image.fromarray(small.astype(np.uint8)).resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR)


def _mix_paint(rng: np.random.Generator, colour: str, depth: float) -> _Paint:
    """Draws an item's hue, saturation and value; depth makes the colour darker and more saturated."""
    hue = _HUES[colour] + rng.normal(0, 5)
    saturation = (0.05 if colour == "grey" else 0.5 + 0.4 * depth) + rng.normal(0, 0.04)
    value = 0.98 - 0.5 * depth + rng.normal(0, 0.03)
    tones = {
        "dark": _rgb(hue, saturation, value * 0.55),
        "light": _rgb(hue, saturation * 0.18, 0.96),
        "leaf": _rgb(115, 0.45, 0.55),
    }
    return _Paint(hue, saturation, value, tones)


def _place(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Draws where an item stands, with a tilt and sometimes mirrored.

    Args:
        rng: the picture's random generator.
        scale: pixels of an outline's unit.

    Returns:
        float64 [3, 2], in pixels: the x and y axes of the outlines, and the item's centre.
    """
    tilt = np.radians(rng.normal(0, 6))
    turn = scale * np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    turn[0] *= rng.choice((-1, 1))
    return np.concatenate([turn, (rng.normal(0, 0.025, (1, 2)) + 0.5) * _CANVAS])


def _draw_part(draw: ImageDraw.ImageDraw, part: _Part, frame: np.ndarray, fill: int | _RGB) -> None:
    _, _, outline, width = part
    points = (outline @ frame[:2] + frame[2]).ravel().tolist()
    if width:
        draw.line(points, fill=fill, width=max(2, round(width * float(np.hypot(*frame[0])))), joint="curve")
    else:
        draw.polygon(points, fill=fill)


def _draw_layer(canvas: Image.Image, parts: tuple[_Part, ...], layer: str, frame: np.ndarray, paint: _Paint) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    for part in parts:
        if part[0] == layer:
            _draw_part(draw, part, frame, paint.tones[part[1]])


def _draw_body(
    canvas: Image.Image,
    rng: np.random.Generator,
    parts: tuple[_Part, ...],
    frame: np.ndarray,
    paint: _Paint,
    style: str,
) -> None:
    """Draws the body with the style's pattern and a shadow."""
    from PIL import Image, ImageChops, ImageDraw

    mask = Image.new("L", canvas.size)
    draw = ImageDraw.Draw(mask)
    for part in parts:
        if part[0] == "body":
            _draw_part(draw, part, frame, 255)
    cut = int(rng.integers(180, 240))
    left, top = (int(v) for v in rng.integers(0, 2 * _CANVAS - cut, 2))
    pattern = _pattern(style).resize(canvas.size, box=(left, top, left + cut, top + cut))
    hue, saturation, value, tones = paint
    canvas.paste(_rgb(hue, saturation, value), mask=mask)
    canvas.paste(_rgb(hue, saturation * 0.45, value * 0.6 + 0.4), mask=ImageChops.multiply(mask, pattern))
    canvas.paste(tones["dark"], mask=ImageChops.multiply(mask, _shade()))


def _draw_ground(canvas: Image.Image, frame: np.ndarray, scale: float) -> None:
    """Draws the item's shadow on the ground."""
    from PIL import ImageDraw

    x, y = frame[2]
    ground = tuple(round(0.8 * c) for c in canvas.getpixel((int(x), _CANVAS - 20)))  # type: ignore[union-attr]
    box = (x - 0.8 * scale, y + 0.72 * scale, x + 0.8 * scale, y + 0.98 * scale)
    ImageDraw.Draw(canvas).ellipse(box, fill=ground)


def _draw_sparks(canvas: Image.Image, rng: np.random.Generator, ornament: float, fill: _RGB) -> None:
    """Draws up to ten four-pointed stars on a ring around the item."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    sparks = round(10 * ornament)
    angle, radius = rng.uniform(0, 2 * np.pi, sparks), rng.uniform(0.40, 0.47, sparks) * _CANVAS
    centres = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] + _CANVAS / 2
    for x, y in centres.tolist():
        spark = [(x, y - 9), (x + 3, y - 3), (x + 9, y), (x + 3, y + 3),
                 (x, y + 9), (x - 3, y + 3), (x - 9, y), (x - 3, y - 3)]  # fmt: skip
        draw.polygon(spark, fill=fill)


def _shrink(canvas: Image.Image, rng: np.random.Generator, age: float) -> Image.Image:
    """Shrinks the picture to a random size, and adds grain; age darkens the corners and makes the grain coarser."""
    from PIL import Image

    side = int(rng.integers(96, 129))
    pixels = np.asarray(canvas.resize((side, side), Image.Resampling.BILINEAR), np.float32)
    axis = np.linspace(-1, 1, side, dtype=np.float32) ** 2
    pixels = pixels * (1 - 0.22 * age * (axis[:, None] + axis))[..., None]
    pixels += rng.standard_normal((side, side, 1), np.float32) * (1.5 + 5 * age)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_picture(latent: Latent, rng: np.random.Generator) -> Image.Image:
    """Draws an item as a stylised product picture, RGB, 96 to 128 pixels a side, without any letters.

    The category is the silhouette, the colour and its depth are the paint, the style is the pattern, the mood is the
    backdrop, the size is the scale, and the ornament is the number of sparks around the item. The age is the sepia, the
    dark corners and the grain.

    Args:
        latent: the attributes to express, already with the noise of this modality.
        rng: draws everything that expresses no attribute, such as place, tilt and grain.
    """
    size, depth, ornament, age = latent.grades
    canvas = _backdrop(rng, MOODS[latent.mood], age)
    paint = _mix_paint(rng, COLOURS[latent.colour], depth)
    scale = (0.24 + 0.2 * size) * _CANVAS
    frame = _place(rng, scale)
    parts = _SILHOUETTES[CATEGORIES[latent.category]]
    _draw_ground(canvas, frame, scale)
    _draw_layer(canvas, parts, "behind", frame, paint)
    _draw_body(canvas, rng, parts, frame, paint, STYLES[latent.style])
    _draw_layer(canvas, parts, "front", frame, paint)
    _draw_sparks(canvas, rng, ornament, paint.tones["light"])
    return _shrink(canvas, rng, age)


def encode_picture(picture: Image.Image, suffix: str) -> bytes:
    """Encodes a picture as PNG if the suffix is `png`, or else as JPEG."""
    buffer = io.BytesIO()
    if suffix == "png":
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
