"""The planted truth about the items of the synthetic shop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CATEGORIES = (
    "backpack", "lamp", "mug", "chair", "guitar", "sneaker",
    "watch", "tent", "kettle", "headphones", "vase", "camera",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "grey")
STYLES = ("plain", "nautical", "playful", "heritage", "alpine", "botanical")
MOODS = ("calm", "cheerful", "bold", "dreamy", "rugged")
GRADES = ("size", "depth", "ornament", "age")
MODALITIES = ("text", "image", "audio")

_CLASSES = np.array([len(CATEGORIES), len(COLOURS), len(STYLES), len(MOODS)])
_MISSING = 0.1  # the chance that an item lacks a modality


@dataclass(frozen=True)
class Latent:
    """The attributes of an item, which its text, picture and sound express.

    Attributes:
        category: index into `CATEGORIES`.
        colour: index into `COLOURS`.
        style: index into `STYLES`.
        mood: index into `MOODS`.
        grades: size, depth of the colour, ornament and age, each from 0 to 1.
    """

    category: int
    colour: int
    style: int
    mood: int
    grades: tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """A planted item. It depends only on the seed and on its own number.

    Attributes:
        index: the item's number.
        latent: the item's attributes.
        popularity: above 0; users turn to an item with chances proportional to it.
        has: whether the item has text, an image and audio.
    """

    index: int
    latent: Latent
    popularity: float
    has: tuple[bool, bool, bool]

    @property
    def item_id(self) -> str:
        """The item's id in the catalogue."""
        return f"item-{self.index:05d}"


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Returns a random generator for one use (`stream`) of one item or block of users (`index`)."""
    return np.random.default_rng((seed, stream, index))


def _latent(classes: np.ndarray, grades: np.ndarray) -> Latent:
    category, colour, style, mood = classes.tolist()
    size, depth, ornament, age = grades.tolist()
    return Latent(category, colour, style, mood, (size, depth, ornament, age))


def plant(seed: int, index: int) -> Item:
    """Draws an item's attributes, popularity and modalities, at least one modality."""
    rng = generator(seed, 0, index)
    latent = _latent(rng.integers(_CLASSES), rng.random(4))
    popularity = float(rng.lognormal(0, 0.9))
    lost = rng.random(3) < _MISSING
    while lost.all():
        lost = rng.random(3) < _MISSING
    return Item(index, latent, popularity, (not lost[0], not lost[1], not lost[2]))


def disturb(latent: Latent, rng: np.random.Generator, wrong: float, deviation: float) -> Latent:
    """Returns the attributes that one modality will express: similar to the planted ones, but with noise.

    Args:
        latent: the planted attributes.
        rng: the modality's random generator.
        wrong: the chance that a class is replaced by a random one.
        deviation: the standard deviation of the noise on grades.
    """
    planted = (latent.category, latent.colour, latent.style, latent.mood)
    classes = np.where(rng.random(4) < wrong, rng.integers(_CLASSES), planted)
    return _latent(classes, np.clip(latent.grades + rng.normal(0, deviation, 4), 0, 1))
