"""Pictures and sounds of the synthetic shop: each expresses an item's planted latent, with noise of its own.

Both take a `Latent` already disturbed for their modality and a generator for what carries no meaning
(place, tilt, grain, phase). Nothing here is text: a picture holds no letters.
"""

from __future__ import annotations

import colorsys
import io
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SAMPLE_RATE_HZ = 16_000
CATEGORIES = (
    "backpack", "lamp", "mug", "chair", "guitar", "sneaker",
    "watch", "tent", "kettle", "headphones", "vase", "camera",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "grey")
STYLES = ("plain", "nautical", "playful", "heritage", "alpine", "botanical")
MOODS = ("calm", "cheerful", "bold", "dreamy", "rugged")
GRADES = ("size", "depth", "ornament", "age")


@dataclass(frozen=True)
class Latent:
    """What an item is: four classes (indices into the tuples above) and four grades in 0 … 1."""

    category: int
    colour: int
    style: int
    mood: int
    grades: tuple[float, float, float, float]


# --- pictures ----------------------------------------------------------------------------------------------

_CANVAS = 208  # pixels; drawn about twice as large as saved, so that edges come out smooth

# A part is (layer, tone, outline [points, 2] in −1 … 1 with y downwards, stroke width or 0 if filled). They
# are painted layer by layer: what stands behind, the body (which carries the pattern), what lies in front.
_Part = tuple[str, str, np.ndarray, float]


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
# Two corners of the backdrop by mood: hue in degrees, saturation, value.
_BACKDROPS = dict(zip(MOODS, (
    ((200, 0.10, 0.97), (205, 0.22, 0.86)),
    ((50, 0.22, 1.00), (35, 0.36, 0.97)),
    ((225, 0.35, 0.42), (240, 0.45, 0.26)),
    ((300, 0.12, 0.98), (265, 0.26, 0.90)),
    ((40, 0.26, 0.72), (75, 0.32, 0.54)),
), strict=True))  # fmt: skip


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    s, v = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    r, g, b = colorsys.hsv_to_rgb(hue / 360 % 1, s, v)
    return round(255 * r), round(255 * g), round(255 * b)


@cache
def _pattern(style: str) -> Image.Image:
    """Draws a style's pattern once, larger than the canvas, so that each picture can cut its own piece."""
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
    """Gives the mask of the shadow on the body's right side."""
    from PIL import Image

    ramp = np.clip(np.linspace(-60, 110, _CANVAS), 0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(ramp, (_CANVAS, _CANVAS)).copy())


def _backdrop(rng: np.random.Generator, mood: str, age: float) -> Image.Image:
    """Gives a slanted gradient between the mood's two colours; age shifts it towards sepia."""
    from PIL import Image

    jitter = rng.normal(0, (8, 0.03, 0.03), (2, 3))
    near, far = (_rgb(*(np.array(c) + j)) for c, j in zip(_BACKDROPS[mood], jitter, strict=True))
    ends = np.array([near, far], float)
    ends += age * 0.35 * (np.array([196.0, 164.0, 112.0]) - ends)
    a, b = rng.uniform(0.2, 0.8, 2)
    corner = np.array([[0.0, a], [b, 1.0]])[..., None]
    small = ends[0] * (1 - corner) + ends[1] * corner
    return Image.fromarray(small.astype(np.uint8)).resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR)


def _paint(
    draw: ImageDraw.ImageDraw, part: _Part, frame: np.ndarray, fill: int | tuple[int, int, int]
) -> None:
    _, _, outline, width = part
    points = (outline @ frame[:2] + frame[2]).ravel().tolist()
    if width:
        draw.line(points, fill=fill, width=max(2, round(width * float(np.hypot(*frame[0])))), joint="curve")
    else:
        draw.polygon(points, fill=fill)


def draw_picture(latent: Latent, rng: np.random.Generator) -> Image.Image:
    """Draws an item as a stylised product picture, RGB, 96 to 128 pixels a side.

    Category is the silhouette, colour and depth its paint, style its pattern, mood the backdrop, size the
    scale, ornament the number of sparks around it, age the sepia, the corners' shade and the grain.
    """
    from PIL import Image, ImageChops, ImageDraw

    size, depth, ornament, age = latent.grades
    canvas = _backdrop(rng, MOODS[latent.mood], age)
    draw = ImageDraw.Draw(canvas)

    colour = COLOURS[latent.colour]
    hue = _HUES[colour] + rng.normal(0, 5)
    saturation = (0.05 if colour == "grey" else 0.5 + 0.4 * depth) + rng.normal(0, 0.04)
    value = 0.98 - 0.5 * depth + rng.normal(0, 0.03)
    tones = {
        "dark": _rgb(hue, saturation, value * 0.55),
        "light": _rgb(hue, saturation * 0.18, 0.96),
        "leaf": _rgb(115, 0.45, 0.55),
    }
    # Rows of `frame`: where the x and y axes go (scale, tilt, sometimes mirrored), and the centre, in pixels.
    scale = (0.24 + 0.2 * size) * _CANVAS
    tilt = np.radians(rng.normal(0, 6))
    turn = scale * np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    turn[0] *= rng.choice((-1, 1))
    frame = np.concatenate([turn, (rng.normal(0, 0.025, (1, 2)) + 0.5) * _CANVAS])

    x, y = frame[2]
    ground = tuple(round(0.8 * c) for c in canvas.getpixel((int(x), _CANVAS - 20)))  # type: ignore[union-attr]
    draw.ellipse((x - 0.8 * scale, y + 0.72 * scale, x + 0.8 * scale, y + 0.98 * scale), fill=ground)

    parts = _SILHOUETTES[CATEGORIES[latent.category]]
    for part in parts:
        if part[0] == "behind":
            _paint(draw, part, frame, tones[part[1]])
    mask = Image.new("L", canvas.size)
    mask_draw = ImageDraw.Draw(mask)
    for part in parts:
        if part[0] == "body":
            _paint(mask_draw, part, frame, 255)
    cut = int(rng.integers(180, 240))
    left, top = (int(v) for v in rng.integers(0, 2 * _CANVAS - cut, 2))
    pattern = _pattern(STYLES[latent.style]).resize(canvas.size, box=(left, top, left + cut, top + cut))
    canvas.paste(_rgb(hue, saturation, value), mask=mask)
    canvas.paste(_rgb(hue, saturation * 0.45, value * 0.6 + 0.4), mask=ImageChops.multiply(mask, pattern))
    canvas.paste(tones["dark"], mask=ImageChops.multiply(mask, _shade()))
    for part in parts:
        if part[0] == "front":
            _paint(draw, part, frame, tones[part[1]])

    sparks = round(10 * ornament)
    angle, radius = rng.uniform(0, 2 * np.pi, sparks), rng.uniform(0.40, 0.47, sparks) * _CANVAS
    centres = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] + _CANVAS / 2
    for sx, sy in centres.tolist():
        spark = [(sx, sy - 9), (sx + 3, sy - 3), (sx + 9, sy), (sx + 3, sy + 3),
                 (sx, sy + 9), (sx - 3, sy + 3), (sx - 9, sy), (sx - 3, sy - 3)]  # fmt: skip
        draw.polygon(spark, fill=tones["light"])

    side = int(rng.integers(96, 129))
    pixels = np.asarray(canvas.resize((side, side), Image.Resampling.BILINEAR), np.float32)
    axis = np.linspace(-1, 1, side, dtype=np.float32) ** 2
    pixels = pixels * (1 - 0.22 * age * (axis[:, None] + axis))[..., None]
    pixels += rng.standard_normal((side, side, 1), np.float32) * (1.5 + 5 * age)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encode_picture(picture: Image.Image, suffix: str) -> bytes:
    """Encodes a picture as `png` or `jpg`."""
    buffer = io.BytesIO()
    if suffix == "png":
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# --- sounds ------------------------------------------------------------------------------------------------

# A timbre is a family of partials times a note's shape times a formant: four families × three shapes give
# the twelve categories. Shapes are attack and decay in seconds.
_PARTIALS = ((1, 2, 3, 4, 5), (1, 3, 5, 7, 9), (1, 2.76, 5.4, 8.93), (1, 2, 4, 8))
_SHAPES = ((0.004, 0.07), (0.08, 0.25), (0.02, 0.9))
_FORMANTS_HZ = np.geomspace(300, 4500, len(CATEGORIES))[np.array((5, 0, 8, 3, 11, 6, 1, 9, 4, 10, 2, 7))]
_ROOTS = (0, 1.5, 3, 4.5, 6, 7.5, 9, 10.5)  # semitones above A by colour
_BANDS_HZ = (500, 900, 1600, 2700, 4300, 6500)  # centre of the noise band by style
_NOTES_PER_S = (1.0, 2.2, 3.6, 5.4, 8.0)  # by mood


def _notes(rng: np.random.Generator, time: np.ndarray, rate: float, shape: tuple[float, float]) -> np.ndarray:
    """Gives the envelope of notes struck `rate` times a second, with uneven strength."""
    attack, decay = shape
    phase = time * rate + rng.uniform(0, 1)
    since = ((phase % 1) / rate).astype(np.float32)
    strength = rng.uniform(0.7, 1.0, int(phase[-1]) + 1).astype(np.float32)
    return np.minimum(since / attack, 1) * np.exp(-since / decay) * strength[phase.astype(np.int64)]


def play_sound(latent: Latent, rng: np.random.Generator) -> np.ndarray:
    """Synthesises an item's sound, float32 [samples] in −1 … 1, 1 to 1.5 s at 16 kHz.

    Category is the timbre, colour the pitch class, style the band of a breath of noise, mood the notes per
    second, size the register (large is low), depth the spectral tilt (deep is dull), ornament the number of
    bells, age the hiss.
    """
    size, depth, ornament, age = latent.grades
    time = np.arange(int(SAMPLE_RATE_HZ * rng.uniform(1.0, 1.5)), dtype=np.float32) / SAMPLE_RATE_HZ
    rate = _NOTES_PER_S[latent.mood] * np.exp(rng.normal(0, 0.08))
    note = _notes(rng, time, rate, _SHAPES[latent.category % 3])

    # The root sounds in four octaves at once, weighted around a register: size leaves the pitch class alone.
    root = 110 * 2 ** ((_ROOTS[latent.colour] + rng.normal(0, 0.2)) / 12)
    octaves = np.arange(4)
    register = np.exp(-(((octaves - 3 * (1 - size)) / 0.8) ** 2))
    ratios = np.array(_PARTIALS[latent.category // 3])
    frequency = (root * 2.0**octaves[:, None] * ratios).ravel()
    formant = np.exp(-((np.log2(frequency / _FORMANTS_HZ[latent.category]) / 0.9) ** 2))
    weight = (register[:, None] / ratios**0.6).ravel() * (0.15 + formant)
    weight *= (frequency / 440) ** (0.5 - 1.6 * depth)
    keep = (frequency < 7600) & (weight > 0.02 * weight.max())
    frequency, weight = frequency[keep], weight[keep] / np.linalg.norm(weight[keep])
    # One row per partial; float32 keeps the sines vectorised.
    phase = rng.uniform(0, 2 * np.pi, (len(weight), 1)).astype(np.float32)
    angle = (2 * np.pi * frequency)[:, None].astype(np.float32) * time + phase
    wave = (weight.astype(np.float32) @ np.sin(angle)) * note

    slow = rng.standard_normal(len(time) // 24 + 2, np.float32)
    breath = np.interp(time * (SAMPLE_RATE_HZ / 24), np.arange(len(slow)), slow).astype(np.float32)
    wave += 0.16 * breath * np.sin(np.float32(2 * np.pi * _BANDS_HZ[latent.style]) * time)
    for start in rng.uniform(0, time[-1] - 0.1, round(8 * ornament)):
        since = time[int(start * SAMPLE_RATE_HZ) :] - np.float32(start)
        wave[-len(since) :] += 0.35 * np.exp(-since * 30) * np.sin(np.float32(2 * np.pi * 5600) * since)
    wave += rng.standard_normal(len(time), np.float32) * np.float32(0.004 * 30**age)
    return wave * np.float32(rng.uniform(0.3, 0.9) / np.abs(wave).max())


_REVERSED = bytes(int(f"{octet:08b}"[::-1], 2) for octet in range(256))


def _ogg_checksum(page: bytes) -> int:
    """Computes an Ogg page's CRC from zlib's (RFC 3533: the same polynomial, not reflected)."""
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def _with_serial(ogg: bytes, serial: int) -> bytes:
    """Sets the stream's serial number, which libsndfile draws at random."""
    pages = []
    start = 0
    while start < len(ogg):
        segments = ogg[start + 26]
        end = start + 27 + segments + sum(ogg[start + 27 : start + 27 + segments])
        page = bytearray(ogg[start:end])
        page[14:18] = struct.pack("<I", serial)
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", _ogg_checksum(bytes(page)))
        pages.append(bytes(page))
        start = end
    return b"".join(pages)


def encode_sound(wave: np.ndarray, suffix: str, serial: int = 1) -> bytes:
    """Encodes a sound as `wav` (16-bit PCM) or `ogg` (Vorbis); equal arguments give equal bytes."""
    import soundfile

    buffer = io.BytesIO()
    if suffix == "ogg":
        soundfile.write(buffer, wave, SAMPLE_RATE_HZ, format="OGG", subtype="VORBIS")
        return _with_serial(buffer.getvalue(), serial)
    soundfile.write(buffer, wave, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
