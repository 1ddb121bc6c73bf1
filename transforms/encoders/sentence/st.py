"""The `st` family: whatever sentence-transformers loads, of text, image, audio, or a joint sample of them.

A model is `st/<hub id>` or `st/<directory>`. (`sentence-transformers/…` alone is an organisation on the hub, and
its text models belong to the family `transformers`, which is faster.) Of modality `joint`, an input is a dict of an
item's parts, {"text": str, "image": bytes or a list, "audio": bytes or a list}; missing parts are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encoders.base import Encoder, EncoderSpec
from unisono.transforms.encoders.checkpoints import local as files
from unisono.transforms.encoders.registry import EncoderInfo
from unisono.transforms.encoders.torch_runtime import TorchRuntime, TorchSettings, read_settings, read_whole
from unisono.transforms.media.audio import decode_audio, window_starts
from unisono.transforms.media.images import decode_image
from unisono.transforms.media.text import clean_text

OPTIONS = ("audio_seconds", "batch", "max_pixels", "parts", "prompt", "revision", "windows")
AUDIO_SECONDS = 30.0  # of one window: what the audio towers of today's omni-modal models were made for
WINDOWS = 4
BATCH = 32
MAX_PIXELS = 2_000_000  # a picture is shrunk to this before it waits for the model; none of them looks at more
_RATE_HZ = 16_000  # of a model whose feature extractor does not state one
_WEIGHTS = (".safetensors",)
_READ = (".json", ".txt", ".model", ".jinja", *_WEIGHTS)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class Settings(NamedTuple):
    """The options of a spec, checked.

    Attributes:
        torch: those that all torch families share.
        audio_seconds: of a window.
        windows: the most that are taken of one clip; a joint sample takes one, from the middle.
        batch: samples in one forward pass, at most.
        max_pixels: of a picture, before the model's own resizing.
        prompt: one of the checkpoint's prompts by name, or a text; None: as sentence-transformers chooses.
        parts: of a joint sample: the modalities that the catalogue has.
    """

    torch: TorchSettings
    audio_seconds: float
    windows: int
    batch: int
    max_pixels: int
    prompt: str | None
    parts: tuple[str, ...]


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Checks the library, options and the checkpoint's files, and tells id and dimension.

    Loads the weights only where no file states the dimension.

    Raises:
        JobError: any of them is missing or wrong.
    """
    settings, root = _read(spec)
    dim = _stated_dim(f"{spec.key}.model", root)
    return EncoderInfo(_encoder_id(spec, settings, root), dim or load(spec).dim)


def load(spec: EncoderSpec) -> Encoder:
    """Loads the model onto the device.

    Raises:
        JobError: as `describe`, or it cannot be loaded, or it does not take this modality.
    """
    settings, root = _read(spec)
    return cast(Encoder, SentenceEncoder(spec, settings, root))


def _read(spec: EncoderSpec) -> tuple[Settings, Path]:
    settings = _read_settings(spec)
    files.require(spec, "torch", "sentence_transformers", extra="omni")
    root = files.find_directory(spec, dict(spec.options).get("revision"), where=spec.model.removeprefix("st/"))
    _check_files(f"{spec.key}.model", root)
    _check_modalities(spec, settings, _stated_modalities(f"{spec.key}.model", root))
    return settings, root


def _read_settings(spec: EncoderSpec) -> Settings:
    shared, options = read_settings(spec, OPTIONS), dict(spec.options)
    seconds = options.get("audio_seconds", AUDIO_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
        raise JobError(f"{spec.key}.audio_seconds: got {seconds!r}; allowed: a number over 0")
    if not isinstance(options.get("prompt", ""), str):
        raise JobError(f"{spec.key}.prompt: got {options['prompt']!r}; allowed: a string")
    return Settings(
        shared,
        float(seconds),
        read_whole(spec, "windows", WINDOWS),
        read_whole(spec, "batch", BATCH),
        read_whole(spec, "max_pixels", MAX_PIXELS),
        options.get("prompt"),
        tuple(options.get("parts", ("text", "image", "audio"))),
    )


# --- files -------------------------------------------------------------------------------------------------


def _modules(key: str, root: Path) -> list[dict[str, Any]]:
    return files.read_json_list(key, root / "modules.json") if (root / "modules.json").is_file() else []


def _check_files(key: str, root: Path) -> None:
    """Refuses what would be unpickled, and modules that are code of the checkpoint's own."""
    folders = {root, *(root / str(m.get("path", "")) for m in _modules(key, root))}
    for module in _modules(key, root):
        if not str(module.get("type", "")).startswith("sentence_transformers."):
            raise JobError(f"{key}: module {module.get('type')} in {root} is code of its own, which is never run")
    for folder in sorted(folders):
        if any(folder.glob("*.safetensors*")):
            for stem in {p.name.partition(".safetensors")[0] for p in folder.glob("*.safetensors*")}:
                if "-of-" not in stem:
                    files.weight_files(key, folder, stem)
        elif pickled := sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLED):
            raise JobError(
                f"{key}: {folder} holds {pickled[0]} but no safetensors, and only those are read: "
                "load it where you trust it and save it again by SentenceTransformer.save_pretrained"
            )
    if not any(root.rglob("*.safetensors")):
        raise JobError(f"{key}: no safetensors under {root}; save it by SentenceTransformer.save_pretrained")


def _stated_dim(key: str, root: Path) -> int | None:
    """Finds the embedding's length in the files of a checkpoint's modules; None where they leave it open."""
    path = root / "config_sentence_transformers.json"
    if path.is_file() and (cut := files.read_json(key, path).get("truncate_dim")):
        return int(cut)
    for module in reversed(_modules(key, root)):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        config = root / str(module.get("path", "")) / "config.json"
        if kind in ("Normalize", "Dropout", "LayerNorm") or not config.is_file():
            continue
        return _dim_of_module(kind, files.read_json(key, config))
    return None


def _dim_of_module(kind: str, config: dict[str, Any]) -> int | None:
    """Reads what a module gives out of its `config.json`."""
    if kind == "Dense":
        return int(config["out_features"])
    if kind == "Pooling":
        width = int(config.get("embedding_dimension") or config.get("word_embedding_dimension") or 0)
        modes = config.get("pooling_mode")  # since version 6; before, one switch for each
        if modes is None:
            modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True] or [""]
        return width * (1 if isinstance(modes, str) else len(modes)) or None
    if kind in ("CLIPModel", "Transformer") and "projection_dim" in config:  # without a Pooling: both its towers'
        return int(config["projection_dim"])
    return None


def _stated_modalities(key: str, root: Path) -> list[str]:
    """Lists what the first module says it takes (`image+text` is a combination); [] where it says nothing."""
    first = next((str(m.get("path", "")) for m in _modules(key, root)), "")
    path = root / first / "sentence_bert_config.json"
    return list(files.read_json(key, path).get("modality_config") or ()) if path.is_file() else []


def _check_modalities(spec: EncoderSpec, settings: Settings, stated: Iterable[str]) -> None:
    """Holds the modality, or a joint sample of all parts, against what the model takes.

    Raises:
        JobError: it does not take it.
    """
    taken = list(stated)
    if not taken:
        return
    wanted = settings.parts if spec.modality == "joint" else (spec.modality,)
    whole = {frozenset(t.split("+")) for t in taken}
    if frozenset(wanted) in whole or ("message" in taken and all(w in taken for w in wanted)):
        return
    raise JobError(
        f"{spec.key}.model: {spec.model!r} does not take {' + '.join(wanted)} in one input; "
        f"it takes {', '.join(t for t in taken if t != 'message')}"
        + ("" if "message" in taken else ", each alone; choose an omni-modal model" if len(wanted) > 1 else "")
    )


def _encoder_id(spec: EncoderSpec, settings: Settings, root: Path) -> str:
    """Hashes weights, configurations, tokenizers and templates, and what the job says of the preprocessing."""
    named = sorted(p for p in root.rglob("*") if p.suffix in _READ and not _is_beside(p.relative_to(root)))
    # `recipe` is this file's: raise it with any change of the output.
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
    return f"st-{files.content_hash(named, facts)}"


def _is_beside(path: Path) -> bool:
    """Says whether a file is of another runtime, or of the download: no part of the model."""
    return path.parts[0] in ("onnx", "openvino") or any(part.startswith(".") for part in path.parts)


# --- running it --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One prepared input: as sentence-transformers takes it, once for each window of a long clip."""

    inputs: tuple[Any, ...]
    nbytes: int
    kind: tuple[str, ...]
    lost: tuple[tuple[str, InputError], ...] = ()


class SentenceEncoder:
    """A sentence-transformers model, documents' side: what `encode_document` gives."""

    def __init__(self, spec: EncoderSpec, settings: Settings, root: Path) -> None:
        import sentence_transformers

        from unisono.transforms.encoders.sentence.transformers_text import quiet

        key = f"{spec.key}.model"
        self.encoder_id = _encoder_id(spec, settings, root)
        self.batch_cost = settings.batch
        self._spec, self._settings, self._key = spec, settings, key
        self._runtime = TorchRuntime(spec, settings.torch)
        import transformers

        try:
            with quiet(transformers):
                model = sentence_transformers.SentenceTransformer(
                    str(root),
                    device=str(self._runtime.device),
                    trust_remote_code=False,
                    local_files_only=True,
                    model_kwargs={"use_safetensors": True, "dtype": "float32"},
                )
        except Exception as error:  # of as many kinds as there are modules
            raise JobError(f"{key}: {root} cannot be loaded ({files.first_line(error)})") from error
        self._model = self._runtime.place(model)
        if settings.torch.compile:
            self._model.compile(dynamic=True)
        self._takes = model.modalities
        _check_modalities(spec, settings, ["+".join(m) if isinstance(m, tuple) else m for m in self._takes])
        self._rate_hz = _sample_rate(model)
        self.dim = _stated_dim(key, root) or self._probe_dim()
        self.text_tower = _QueryEncoder(self) if self._takes_text else None

    def _probe_dim(self) -> int:
        text = self._encode([self._to_sample({"text": "a"}).inputs[0]], query=False) if self._takes_text else None
        if text is None:
            raise JobError(f"{self._key}: no file states the embedding's length; add a modules.json with its modules")
        return int(text.shape[1])

    @property
    def _takes_text(self) -> bool:
        return bool(self._model.supports("text"))

    def prepare(self, raw: Any) -> Sample:
        """Decodes one input, or the parts of a joint one.

        Raises:
            InputError: it cannot be used, or the model takes no sample of just these parts.
        """
        return self._to_sample(raw if self._spec.modality == "joint" else {self._spec.modality: raw})

    def _to_sample(self, raw: dict[str, Any]) -> Sample:
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
        """Lists files; only a chat template has room for several, another model gets the first."""
        several = list(raw) if isinstance(raw, list | tuple) else [raw]
        return several if "message" in self._takes else several[:1]

    def _plain(self, parts: dict[str, Any]) -> Any:
        """Gives the input that the library's own examples have. A text that it would take for a file or a link, and
        open, is passed as what it is.
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
        """Counts windows."""
        return len(prepared.inputs)

    def encode(self, batch: Sequence[Sample]) -> np.ndarray:
        """Encodes inputs: float32 [len(batch), dim]. Of several windows, the mean of their unit embeddings."""
        out = np.empty((len(batch), self.dim), np.float32)
        # Like with like: a batch of unlike inputs would be turned into chat messages, which not every model takes.
        for kind in sorted({sample.kind for sample in batch}):
            rows = [i for i, sample in enumerate(batch) if sample.kind == kind]
            vectors = self._encode([x for i in rows for x in batch[i].inputs], query=False)
            counts = [len(batch[i].inputs) for i in rows]
            out[rows] = vectors if max(counts) == 1 else _means(vectors, counts)
        return out

    def _encode(self, inputs: list[Any], query: bool) -> np.ndarray:
        encode = self._model.encode_query if query else self._model.encode_document
        options: dict[str, Any] = {} if query or self._settings.prompt is None else self._prompt()
        with self._runtime.inference():
            vectors = encode(
                inputs, batch_size=len(inputs), show_progress_bar=False, convert_to_tensor=True, **options
            )
        found = self._runtime.fetch(vectors)
        if found.shape[1] != getattr(self, "dim", found.shape[1]):
            raise JobError(
                f"{self._key}: its files state an embedding of {self.dim}, the model gives {found.shape[1]}; "
                "save it again by SentenceTransformer.save_pretrained"
            )
        return found

    def _prompt(self) -> dict[str, str]:
        named = self._settings.prompt in self._model.prompts
        return {"prompt_name" if named else "prompt": str(self._settings.prompt)}


class _QueryEncoder:
    """The same model on the side of queries, of text: what `encode_query` gives."""

    def __init__(self, documents: SentenceEncoder) -> None:
        self._documents = documents
        self.encoder_id, self.batch_cost = documents.encoder_id, documents.batch_cost

    @functools.cached_property
    def dim(self) -> int:
        return self._documents.dim

    def prepare(self, raw: str) -> Sample:
        """Strips one text."""
        return self._documents._to_sample({"text": raw})

    def cost(self, prepared: Sample) -> int:
        """1: queries are short."""
        return 1

    def encode(self, batch: Sequence[Sample]) -> np.ndarray:
        """Encodes texts: float32 [len(batch), dim]."""
        if not len(batch):
            return np.empty((0, self.dim), np.float32)
        return self._documents._encode([x for sample in batch for x in sample.inputs], query=True)


def _means(vectors: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Means the unit vectors of consecutive groups: float32 [len(counts), dim]; a group of one stays as it is."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(norms > 0, norms, 1)
    first, sizes = np.cumsum([0, *counts[:-1]]), np.asarray(counts)[:, None]
    means = np.add.reduceat(unit, first, axis=0) / sizes
    return cast(np.ndarray, np.where(sizes == 1, vectors[first], means).astype(np.float32))


def _sample_rate(model: Any) -> int:
    """Finds the rate that the audio side was made for."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        for holder in (getattr(processor, "feature_extractor", None), processor):
            if rate := getattr(holder, "sampling_rate", None):
                return int(rate)
    return _RATE_HZ
