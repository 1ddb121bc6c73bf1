"""The family `st`: every model that sentence-transformers loads, for text, image, audio or joint inputs.

A model is `st/<hub id>` or `st/<directory>`. (`sentence-transformers/…` without `st/` is an organisation on the hub.
Its text models belong to the family `transformers`, which is faster.)

A raw input of modality `joint` is a dict of an item's parts, {"text": str, "image": bytes or a list of bytes, "audio":
bytes or a list of bytes}, without the parts that the item does not have.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.base.modalities import CATALOG, JOINT
from unisono.transforms.encoders.base import Encoder, EncoderInfo, EncoderSpec, to_units
from unisono.transforms.encoders.checkpoints.formats import first_line
from unisono.transforms.encoders.checkpoints.loading import quiet_transformers
from unisono.transforms.encoders.checkpoints.local import content_hash, find_directory
from unisono.transforms.encoders.sentence.st_checkpoint import (
    check_files,
    check_modalities,
    model_files,
    stated_dim,
    stated_modalities,
)
from unisono.transforms.encoders.torch_runtime import (
    TorchRuntime,
    TorchSettings,
    read_seconds,
    read_settings,
    read_string,
    read_whole,
)
from unisono.transforms.media.audio import decode_audio
from unisono.transforms.media.images import decode_image
from unisono.transforms.media.text import clean_text
from unisono.transforms.media.windows import window_starts

OPTIONS = ("audio_seconds", "batch", "max_pixels", "parts", "prompt", "revision", "windows")
# Defaults of options.
AUDIO_SECONDS = 30.0  # length of a window: the audio towers of current omni-modal models were made for this length
WINDOWS = 4
BATCH = 32
MAX_PIXELS = 2_000_000  # a larger picture is shrunk to this before it waits for the model; models use no more
_RATE_HZ = 16_000  # for a model whose feature extractor states no sample rate


class Settings(NamedTuple):
    """The options of an encoder, after their check.

    Attributes:
        torch: the options that all torch families share.
        audio_seconds: the length of an audio window, in seconds.
        windows: the largest number of windows that are taken from one clip. A joint input takes one, from the middle.
        batch: the largest number of inputs in one forward pass.
        max_pixels: a larger picture is shrunk to this many pixels before the model's own resizing.
        prompt: the name of one of the checkpoint's prompts, or a text. None means the choice of sentence-transformers.
        parts: the modalities that a joint input is made of.
    """

    torch: TorchSettings
    audio_seconds: float
    windows: int
    batch: int
    max_pixels: int
    prompt: str | None
    parts: tuple[str, ...]


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Checks the options and the checkpoint's files, and returns id and dimension.

    Weights are hashed. They are loaded only if no file states the dimension.

    Raises:
        JobError: an option or a file is missing or wrong.
    """
    settings, root = _read(spec)
    dim = stated_dim(f"{spec.key}.model", root)
    return EncoderInfo(_encoder_id(spec, settings, root), dim or load(spec).dim)


def load(spec: EncoderSpec) -> Encoder:
    """Loads the model onto the device.

    Raises:
        JobError: as `describe`, or the model cannot be loaded, or it does not take this modality.
    """
    settings, root = _read(spec)
    return cast(Encoder, SentenceEncoder(spec, settings, root))


def _read(spec: EncoderSpec) -> tuple[Settings, Path]:
    settings = Settings(
        torch=read_settings(spec, OPTIONS),
        audio_seconds=read_seconds(spec, "audio_seconds", AUDIO_SECONDS),
        windows=read_whole(spec, "windows", WINDOWS),
        batch=read_whole(spec, "batch", BATCH),
        max_pixels=read_whole(spec, "max_pixels", MAX_PIXELS),
        prompt=read_string(spec, "prompt"),
        parts=tuple(dict(spec.options).get("parts", CATALOG)),
    )
    root = find_directory(spec, read_string(spec, "revision"), where=spec.model.removeprefix("st/"))
    key = f"{spec.key}.model"
    check_files(key, root)
    check_modalities(spec, settings.parts, stated_modalities(key, root))
    return settings, root


def _encoder_id(spec: EncoderSpec, settings: Settings, root: Path) -> str:
    """Hashes the checkpoint's files and the settings that the output depends on."""
    named = model_files(root)
    # Raise `recipe` with every change of this file that changes the output.
    facts: dict[str, Any] = {
        "recipe": "1",
        "modality": spec.modality,
        "places": [str(p.relative_to(root)) for p in named],
        "prompt": settings.prompt,
        **settings.torch.facts,
    }
    if spec.modality in ("audio", "joint"):
        facts["audio_seconds"] = settings.audio_seconds
    if spec.modality == "audio":
        facts["windows"] = settings.windows
    if spec.modality in ("image", "joint"):
        facts["max_pixels"] = settings.max_pixels
    return f"st-{content_hash(named, facts)}"


# --- running it --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One prepared input.

    Attributes:
        inputs: the input in the form that sentence-transformers takes. A long clip has one for each of its windows.
        nbytes: the number of bytes that the input holds.
        kind: the modalities in the input, sorted.
        lost: the parts of a joint input that cannot be used, and why.
    """

    inputs: tuple[Any, ...]
    nbytes: int
    kind: tuple[str, ...]
    lost: tuple[tuple[str, InputError], ...] = ()


class SentenceEncoder:
    """A model of sentence-transformers. It encodes the catalogue's inputs with `encode_document`."""

    def __init__(self, spec: EncoderSpec, settings: Settings, root: Path) -> None:
        import sentence_transformers

        key = f"{spec.key}.model"
        self.encoder_id = _encoder_id(spec, settings, root)
        self.batch_cost = settings.batch
        self._spec, self._settings, self._key = spec, settings, key
        self._runtime = TorchRuntime(spec, settings.torch)
        try:
            with quiet_transformers():
                model = sentence_transformers.SentenceTransformer(
                    str(root),
                    device=str(self._runtime.device),
                    trust_remote_code=False,
                    local_files_only=True,
                    model_kwargs={"use_safetensors": True, "dtype": "float32"},
                )
        except Exception as error:  # each module raises errors of its own types
            raise JobError(f"{key}: {root} cannot be loaded ({first_line(error)})") from error
        self._model = self._runtime.place(model)
        if settings.torch.compile:
            self._model.compile(dynamic=True)
        self._takes = model.modalities
        taken = ["+".join(m) if isinstance(m, tuple) else m for m in self._takes]
        check_modalities(spec, settings.parts, taken)
        self._rate_hz = _sample_rate(model)
        self.dim = stated_dim(key, root) or self._probe_dim()
        self.text_tower = _QueryEncoder(self) if self._takes_text else None

    def _probe_dim(self) -> int:
        """Finds the length of an embedding by encoding a text.

        Raises:
            JobError: the model takes no text.
        """
        text = self.run_model([self.to_sample({"text": "a"}).inputs[0]], query=False) if self._takes_text else None
        if text is None:
            raise JobError(f"{self._key}: no file states the embedding's length; add a modules.json with its modules")
        return int(text.shape[1])

    @property
    def _takes_text(self) -> bool:
        return bool(self._model.supports("text"))

    def prepare(self, raw: Any) -> Sample:
        """Decodes one input, or the parts of a joint one.

        Raises:
            InputError: the input cannot be used, or the model takes no input with exactly these parts.
        """
        return self.to_sample(raw if self._spec.modality == JOINT else {self._spec.modality: raw})

    def to_sample(self, raw: dict[str, Any]) -> Sample:
        """Decodes an input that is given as a dict by part.

        Raises:
            InputError: as `prepare`.
        """
        kind = tuple(sorted(raw))
        self._check_kind(kind)
        if kind == ("audio",):
            windows = self._windows(raw["audio"], self._settings.windows)
            return Sample(tuple(map(self._sound, windows)), sum(w.nbytes for w in windows), kind)
        nbytes, parts, lost = 0, cast(dict[str, Any], {}), []
        for name, make in (("text", self._texts), ("image", self._pictures), ("audio", self._sounds)):
            if name not in raw:
                continue
            try:
                parts[name], held = make(raw[name])
                nbytes += held
            except InputError as error:
                if len(raw) == 1:
                    raise
                lost.append((name, error))
        if not parts:
            raise lost[0][1]
        self._check_kind(tuple(sorted(parts)))
        return Sample((self._plain(parts),), nbytes, tuple(sorted(parts)), tuple(lost))

    def _check_kind(self, kind: tuple[str, ...]) -> None:
        if not self._model.supports(kind[0] if len(kind) == 1 else kind):
            raise InputError(Reason.ENCODER_FAILED, f"the model takes no input of {' + '.join(kind)} alone")

    # Each of these three prepares one part: the part in the library's form, and the bytes that it holds.

    def _texts(self, raw: str) -> tuple[str, int]:
        text = clean_text(raw)
        return text, len(text)

    def _pictures(self, raw: Any) -> tuple[Any, int]:
        made = [self._picture(data) for data in self._as_many(raw)]
        return (made if len(made) > 1 else made[0]), sum(3 * p.width * p.height for p in made)

    def _sounds(self, raw: Any) -> tuple[Any, int]:
        waves = [self._windows(data, 1)[0] for data in self._as_many(raw)]
        made = [self._sound(w) for w in waves]
        return (made if len(made) > 1 else made[0]), sum(w.nbytes for w in waves)

    def _as_many(self, raw: Any) -> list[bytes]:
        """Lists the files of a part. Only a model with a chat template takes several; any other gets the first."""
        several = list(raw) if isinstance(raw, list | tuple) else [raw]
        return several if "message" in self._takes else several[:1]

    def _plain(self, parts: dict[str, Any]) -> Any:
        """Returns an input in the form that the library expects.

        A text alone is passed as a string, unless the library would take it for the name of a file or for a link and
        open it. Such a text is passed as a dict.
        """
        from sentence_transformers.base.modality import infer_modality

        if list(parts) != ["text"]:
            return parts
        is_text = infer_modality(parts["text"], supported_modalities=self._takes) == "text"
        return parts["text"] if is_text else parts

    def _picture(self, data: bytes) -> Any:
        picture = decode_image(data, self._spec.limits)
        scale = (self._settings.max_pixels / (picture.width * picture.height)) ** 0.5
        if scale < 1:
            picture = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
        return picture

    def _windows(self, data: bytes, most: int) -> list[np.ndarray]:
        wave = decode_audio(data, self._spec.limits, self._rate_hz)
        window = max(1, round(self._settings.audio_seconds * self._rate_hz))
        if len(wave) <= window:
            return [wave]
        return [wave[s : s + window].copy() for s in window_starts(len(wave), window, window, most)]

    def _sound(self, wave: np.ndarray) -> dict[str, Any]:
        return {"array": wave, "sampling_rate": self._rate_hz}

    def cost(self, prepared: Sample) -> int:
        """Returns the number of windows."""
        return len(prepared.inputs)

    def encode(self, batch: Sequence[Sample]) -> np.ndarray:
        """Encodes inputs: float32 [len(batch), dim].

        The embedding of several windows is the mean of their unit embeddings.
        """
        out = np.empty((len(batch), self.dim), np.float32)
        # One kind of input at a time: the library makes chat messages of a mixed batch, which some models do not take.
        for kind in sorted({sample.kind for sample in batch}):
            rows = [i for i, sample in enumerate(batch) if sample.kind == kind]
            vectors = self.run_model([x for i in rows for x in batch[i].inputs], query=False)
            counts = [len(batch[i].inputs) for i in rows]
            out[rows] = vectors if max(counts) == 1 else _means(vectors, counts)
        return out

    def run_model(self, inputs: list[Any], query: bool) -> np.ndarray:
        """Encodes inputs in the library's form, as documents or as queries: float32 [len(inputs), dim].

        Raises:
            JobError: the embeddings have another length than the checkpoint's files state.
        """
        encode = self._model.encode_query if query else self._model.encode_document
        options: dict[str, Any] = {} if query or self._settings.prompt is None else self._prompt()
        with self._runtime.inference():
            vectors = encode(
                inputs, batch_size=len(inputs), show_progress_bar=False, convert_to_tensor=True, **options
            )
        found = self._runtime.fetch(vectors)
        if found.shape[1] != getattr(self, "dim", found.shape[1]):
            raise JobError(
                f"{self._key}: its files state an embedding of {self.dim}, the model returns {found.shape[1]}; "
                "save it again with SentenceTransformer.save_pretrained"
            )
        return found

    def _prompt(self) -> dict[str, str]:
        named = self._settings.prompt in self._model.prompts
        return {"prompt_name" if named else "prompt": str(self._settings.prompt)}


class _QueryEncoder:
    """The same model. It encodes text queries with `encode_query`."""

    def __init__(self, documents: SentenceEncoder) -> None:
        self._documents = documents
        self.encoder_id, self.batch_cost = documents.encoder_id, documents.batch_cost

    @functools.cached_property
    def dim(self) -> int:
        """The length of an embedding, which is not known yet when this object is made."""
        return self._documents.dim

    def prepare(self, raw: str) -> Sample:
        """Strips one text.

        Raises:
            InputError: EMPTY_TEXT.
        """
        return self._documents.to_sample({"text": raw})

    def cost(self, prepared: Sample) -> int:
        """Returns 1."""
        return 1

    def encode(self, batch: Sequence[Sample]) -> np.ndarray:
        """Encodes texts: float32 [len(batch), dim]."""
        if not len(batch):
            return np.empty((0, self.dim), np.float32)
        return self._documents.run_model([x for sample in batch for x in sample.inputs], query=True)


def _means(vectors: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Averages the unit vectors of each group of consecutive rows. A group of one row keeps its vector unscaled.

    Args:
        vectors: float32 [n, dim].
        counts: the number of rows in each group; they add up to n.

    Returns:
        float32 [len(counts), dim].
    """
    unit = to_units(vectors)
    first, sizes = np.cumsum([0, *counts[:-1]]), np.asarray(counts)[:, None]
    means = np.add.reduceat(unit, first, axis=0) / sizes
    return cast(np.ndarray, np.where(sizes == 1, vectors[first], means).astype(np.float32))


def _sample_rate(model: Any) -> int:
    """Finds the sample rate that a model takes, in Hz."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        for holder in (getattr(processor, "feature_extractor", None), processor):
            if rate := getattr(holder, "sampling_rate", None):
                return int(rate)
    return _RATE_HZ
