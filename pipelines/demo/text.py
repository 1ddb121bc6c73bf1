"""Titles and descriptions of the synthetic shop. They express their item's attributes and have noise of their own."""

from __future__ import annotations

import numpy as np

from unisono.pipelines.demo.items import CATEGORIES, COLOURS, MOODS, STYLES, Latent

_NOUNS = dict(zip(CATEGORIES, (
    ("backpack", "rucksack", "daypack", "knapsack"),
    ("lamp", "table light", "luminaire", "desk lamp"),
    ("mug", "cup", "beaker", "coffee mug"),
    ("chair", "armchair", "seat", "side chair"),
    ("guitar", "six-string", "acoustic guitar", "travel guitar"),
    ("sneaker", "trainer", "running shoe", "plimsoll"),
    ("watch", "wristwatch", "timepiece", "chronograph"),
    ("tent", "bivouac", "two-person shelter", "camping tent"),
    ("kettle", "teapot", "stovetop kettle", "tea kettle"),
    ("headphones", "headset", "over-ear phones", "studio headphones"),
    ("vase", "urn", "flower jar", "amphora"),
    ("camera", "rangefinder", "compact camera", "point-and-shoot"),
), strict=True))  # fmt: skip
_COLOUR_WORDS = dict(zip(COLOURS, (
    ("red", "crimson", "scarlet", "ruby"),
    ("orange", "tangerine", "amber", "copper"),
    ("yellow", "lemon", "saffron", "mustard"),
    ("green", "emerald", "fern", "jade"),
    ("blue", "azure", "cobalt", "denim"),
    ("purple", "violet", "plum", "aubergine"),
    ("pink", "magenta", "fuchsia", "raspberry"),
    ("grey", "slate", "ash", "silver"),
), strict=True))  # fmt: skip
_STYLE_WORDS = dict(zip(STYLES, (
    ("minimalist", "plain", "pared-back", "clean-lined"),
    ("nautical", "sailor", "harbour", "regatta"),
    ("playful", "polka", "confetti", "party"),
    ("heritage", "tartan", "plaid", "highland"),
    ("alpine", "trail", "summit", "expedition"),
    ("botanical", "floral", "meadow", "garden"),
), strict=True))  # fmt: skip
_MOOD_WORDS = dict(zip(MOODS, (
    ("calm", "serene", "quiet", "peaceful"),
    ("cheerful", "sunny", "upbeat", "joyful"),
    ("bold", "dramatic", "daring", "striking"),
    ("dreamy", "whimsical", "romantic", "gentle"),
    ("rugged", "sturdy", "hard-wearing", "tough"),
), strict=True))  # fmt: skip
# Words for grades, from low to high.
_SIZES = (
    ("tiny", "miniature"), ("small", "petite"), ("mid-size", "regular"), ("roomy", "large"),
    ("oversized", "giant"),
)  # fmt: skip
_DEPTHS = (("pale", "pastel"), ("light", "soft"), ("medium", "even"), ("rich", "saturated"), ("deep", "dark"))
_ORNAMENTS = (
    ("no trimmings", "nothing to distract"), ("a small accent", "one discreet detail"),
    ("a few sparkling details", "some bright studs"), ("many sparkling details", "generous trimmings"),
    ("lavish decoration", "ornaments all over"),
)  # fmt: skip
_AGES = (
    ("brand-new design", "fresh this season"), ("modern make", "contemporary make"),
    ("timeless make", "classic make"), ("retro make", "second-hand charm"),
    ("true vintage", "antique patina"),
)  # fmt: skip
_MAKERS = ("Aldo", "Brisk & Co", "Corvane", "Dunmore", "Elkhart", "Fjell", "Gantry", "Hollis", "Ibex", "Juno")
_FILLERS = (
    "Ships in recycled packaging.", "Two-year guarantee.", "Rated well by early buyers.", "A good gift.",
    "Wipe clean with a damp cloth.", "Designed in our studio.", "Limited stock.", "Free returns for 30 days.",
    "Tested for everyday use.", "Part of our autumn selection.",
)  # fmt: skip


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _graded(rng: np.random.Generator, scale: tuple[tuple[str, ...], ...], grade: float) -> str:
    return _pick(rng, scale[min(int(grade * len(scale)), len(scale) - 1)])


def write_text(latent: Latent, rng: np.random.Generator) -> tuple[str, str]:
    """Writes an item's title and description; each of them leaves some attributes out.

    Args:
        latent: the attributes to express, already with the noise of this modality.
        rng: chooses the words, and the attributes that are left out.
    """
    size, depth, ornament, age = latent.grades
    nouns, colours = _NOUNS[CATEGORIES[latent.category]], _COLOUR_WORDS[COLOURS[latent.colour]]
    styles, moods = _STYLE_WORDS[STYLES[latent.style]], _MOOD_WORDS[MOODS[latent.mood]]
    silent = rng.random(7) < 0.15

    noun = _pick(rng, nouns)
    if rng.random() < 0.25:
        words = [_pick(rng, styles), noun, "in", _pick(rng, colours)]
    elif rng.random() < 0.3:
        words = [_graded(rng, _SIZES, size), _pick(rng, colours), noun]
    else:
        words = [_pick(rng, colours), _pick(rng, styles), noun]
    title = " ".join(words)
    title = title[0].upper() + title[1:]
    if rng.random() < 0.3:
        title = f"{_pick(rng, _MAKERS)} {title}"

    what = _pick(rng, nouns) if rng.random() < 0.8 else "piece"
    lead = [word for word, hush in (
        (_graded(rng, _SIZES, size), silent[0]),
        (_pick(rng, moods), silent[1]),
        (_pick(rng, styles), silent[2]),
    ) if not hush]  # fmt: skip
    rng.shuffle(lead)
    first = " ".join([*lead, what])
    article = "An" if first[0] in "aeiou" else "A"
    if not silent[3]:
        first += f" in {_graded(rng, _DEPTHS, depth)} {_pick(rng, colours)}"
    sentences = [f"{article} {first}."]
    if not silent[4]:
        sentences.append(f"With {_graded(rng, _ORNAMENTS, ornament)}.")
    if not silent[5]:
        line = _graded(rng, _AGES, age)
        sentences.append(f"{line[0].upper()}{line[1:]}.")
    if silent[6]:
        sentences.append(f"For a {_pick(rng, moods)} home.")
    sentences += [_pick(rng, _FILLERS) for _ in range(int(rng.integers(0, 3)))]
    return title, " ".join(sentences)
