"""Saves tiny checkpoints with random weights, in the true formats of their libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SENTENCE = """a an the red green blue wooden chair table lamp soft loud small song of bell drum frog sings in rain
for kids ein eine der die das stuhl tisch lampe holz grün rot query document passage"""
WORDS = _SENTENCE.split()
TEXTS = [
    "A red wooden chair",
    "a green lamp, small and soft",
    "Ein grüner Stuhl aus Holz",
    "木头椅子",
    "rain",
    "x",
    "the loud drum sings a song for kids in the rain " * 12,  # longer than the maximum of every tiny checkpoint
]

_MODULES = "sentence_transformers.models."


def save_tokenizer(directory: Path, max_tokens: int = 48, closing: bool = True) -> int:
    """Saves a WordPiece tokenizer of `WORDS` and single characters.

    Args:
        directory: where it is saved.
        max_tokens: the longest input that it states.
        closing: whether it adds special tokens at both ends.

    Returns:
        The size of its vocabulary.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyzäöü,.木头椅子:"))
    pieces = list(dict.fromkeys([*special, *letters, *("##" + c for c in letters), *WORDS]))
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if closing:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_tokens, mask_token="[MASK]", **names
    ).save_pretrained(directory)
    return len(pieces)


def save_transformer(directory: Path, kind: str = "bert", seed: int = 0, width: int = 32) -> None:
    """Saves a two-layer text encoder with its tokenizer, as `save_pretrained` does.

    The weights are large enough that different texts get clearly different embeddings.

    Args:
        directory: where it is saved.
        kind: `bert`, `roberta`, `qwen2` or `t5`.
        seed: of the random weights.
        width: the length of its token vectors.
    """
    import torch
    import transformers as hf

    size = save_tokenizer(directory, closing=kind != "qwen2")
    torch.manual_seed(seed)
    if kind == "t5":
        config: Any = hf.T5Config(
            vocab_size=size, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=3.0
        )
        model: Any = hf.T5EncoderModel(config)
    else:
        made = {"bert": hf.BertConfig, "roberta": hf.RobertaConfig, "qwen2": hf.Qwen2Config}[kind]
        extra = {"num_key_value_heads": 2} if kind == "qwen2" else {}
        config = made(
            vocab_size=size,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.4,
            pad_token_id=0,
            **extra,
        )
        model = hf.AutoModel.from_config(config)
    model.save_pretrained(directory)


def save_sentence_files(
    directory: Path,
    pooling: dict[str, Any],
    dense: int | None = None,
    normalize: bool = False,
    max_tokens: int | None = None,
    prompts: dict[str, str] | None = None,
    width: int = 32,
) -> None:
    """Adds the files of sentence-transformers to a saved transformer, in the format of published checkpoints.

    Args:
        directory: of the transformer.
        pooling: keys of the pooling's configuration.
        dense: the output length of a dense layer. None means that there is none.
        normalize: whether a normalisation comes last.
        max_tokens: the longest input that is stated. None means that none is.
        prompts: the prompts by name. None means that there is no file for them.
        width: the length of the token vectors.
    """
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": _MODULES + kind}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths:
        (directory / path).mkdir(exist_ok=True)
    write_json(directory / "modules.json", modules)
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
    if max_tokens:
        write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    if prompts is not None:
        write_json(directory / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    if dense:
        import torch
        from safetensors.torch import save_file

        config = {"in_features": width, "out_features": dense, "bias": True}
        config["activation_function"] = "torch.nn.modules.activation.Tanh"  # type: ignore[assignment]
        write_json(directory / paths[2] / "config.json", config)
        torch.manual_seed(1)
        weights = {"linear.weight": torch.randn(dense, width) / 4, "linear.bias": torch.randn(dense)}
        save_file(weights, directory / paths[2] / "model.safetensors")


def save_clap(directory: Path, truncation: str = "rand_trunc", padding: str = "repeatpad", seconds: int = 1) -> None:
    """Saves a tiny ClapModel with the files of its processor.

    Args:
        directory: where it is saved.
        truncation: `rand_trunc` or `fusion`.
        padding: of shorter clips.
        seconds: length of the model's window, at 48 kHz.
    """
    import torch
    import transformers as hf

    size = save_tokenizer(directory)
    torch.manual_seed(4)
    audio = {
        "spec_size": 128,
        "num_mel_bins": 64,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "depths": [2, 2],
        "num_attention_heads": [2, 4],
        "num_hidden_layers": 2,
        "window_size": 4,
        "enable_fusion": truncation == "fusion",
        "fusion_type": None,
        "aff_block_r": 2,
        "fusion_num_hidden_layers": 2,
    }
    text = {
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    config = hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=24)
    model = hf.ClapModel(config)
    with torch.no_grad():  # the library starts with such small weights that all embeddings would be alike
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "batch_norm" not in name:
                weight.normal_(0, 2.5 / weight[0].numel() ** 0.5)
        for name, values in model.named_buffers():  # statistics of features in decibels
            if name.startswith("audio_model.audio_encoder.batch_norm.running"):
                values.fill_(-30 if name.endswith("mean") else 400)
    model.save_pretrained(directory)
    hf.ClapFeatureExtractor(truncation=truncation, padding=padding, max_length_s=seconds).save_pretrained(directory)


# The configuration of a tiny EmbeddingGemma2.
_OMNI_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
    "embedding_dim": 24, "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip
_OMNI_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
_OMNI_AUDIO = {
    "model_type": "gemma4_audio", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "output_proj_dims": 32, "initializer_range": 0.3,
}  # fmt: skip
_OMNI_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<img>{% elif c['type'] == 'audio' %}<aud>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def save_omni(directory: Path) -> None:
    """Saves a tiny EmbeddingGemma2, which takes text, image and audio in one input, as sentence-transformers does."""
    import torch
    import transformers as hf
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor

    marks = {"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    marks |= {"audio_token": "<aud>", "boa_token": "<boa>", "eoa_token": "<eoa>"}
    save_tokenizer(directory, max_tokens=512)
    tokenizer: Any = hf.PreTrainedTokenizerFast.from_pretrained(
        directory, extra_special_tokens={**marks, "video_token": "<|video|>"}
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|video|>"]})
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    torch.manual_seed(5)
    text = {**_OMNI_TEXT, "vocab_size": len(tokenizer)}
    config = hf.EmbeddingGemma2Config(
        text_config=text,
        vision_config=_OMNI_VISION,
        audio_config=_OMNI_AUDIO,
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        image_token_id=ids["image_token"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
        audio_token_id=ids["audio_token"],
    )
    hf.EmbeddingGemma2Model(config).save_pretrained(directory)
    from transformers.models.embedding_gemma2.video_processing_embedding_gemma2 import EmbeddingGemma2VideoProcessor

    hf.EmbeddingGemma2Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(max_soft_tokens=70),
        tokenizer,
        EmbeddingGemma2VideoProcessor(),
        chat_template=_OMNI_TEMPLATE,
    ).save_pretrained(directory)
    prompts = {"query": "song: ", "document": "the red "}
    resave(directory, [Pooling(24, "mean"), Normalize()], prompts=prompts)


def resave(directory: Path, modules: list[Any], **options: Any) -> None:
    """Saves a model of transformers again, in the format of sentence-transformers.

    Args:
        directory: of the model; it is overwritten.
        modules: the modules that follow the transformer.
        options: further arguments for `SentenceTransformer`.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    model = SentenceTransformer(modules=[Transformer(str(directory)), *modules], device="cpu", **options)
    model.save_pretrained(str(directory), create_model_card=False)


def save_clip(directory: Path) -> None:
    """Saves a tiny CLIPModel with its processor, in the form of sentence-transformers' CLIP models."""
    import torch
    import transformers as hf

    size = save_tokenizer(directory, max_tokens=16)
    torch.manual_seed(6)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": size, "max_position_embeddings": 16, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20, initializer_factor=3.0)
    hf.CLIPModel(config).save_pretrained(directory)
    tokenizer = hf.PreTrainedTokenizerFast.from_pretrained(directory)
    shape: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    hf.CLIPProcessor(hf.CLIPImageProcessor(**shape), tokenizer).save_pretrained(directory)
    resave(directory, [])


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(value, indent=2))


# Configurations of tiny CLIP models, one for each kind of architecture that open_clip has.
CLIPS: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}},
    "vit-quickgelu-oblong": {
        "quick_gelu": True,
        "vision_cfg": {"image_size": [24, 40], "layers": 2, "width": 64, "patch_size": 8},
    },
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}},
    "siglip-like": {
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "pool_type": "avg"},
        "text_cfg": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "timm": {
        "custom_text": True,
        "vision_cfg": {
            "image_size": 64, "timm_model_name": "test_convnext", "timm_model_pretrained": False,
            "timm_pool": "", "timm_proj": "linear",
        },
    },
    "coca": {
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 64, "patch_size": 8,
            "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True,
        },
        "text_cfg": {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2,
        },
    },
}  # fmt: skip


def save_open_clip(directory: Path, kind: str = "vit", seed: int = 0, preprocess: dict[str, Any] | None = None) -> None:
    """Saves a tiny CLIP in the layout of open_clip's hub repositories.

    Args:
        directory: where it is saved.
        kind: a key of `CLIPS`.
        seed: of the random weights.
        preprocess: open_clip's `preprocess_cfg`.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config = {"embed_dim": 24, **CLIPS[kind], "text_cfg": {**text, **CLIPS[kind].get("text_cfg", {})}}
    directory.mkdir(exist_ok=True)
    write_json(directory / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess or {}})
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{directory}")
    with torch.no_grad():  # with their initial weights, such small towers give all inputs nearly the same embedding
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = 1.0 if "embedding" in name else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn_like(parameter) * scale)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "open_clip_model.safetensors")
