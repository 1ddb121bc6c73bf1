"""The fused attention, compared with the model's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.transforms.encoders.clap.reference import reference
from unisono.transforms.encoders.clap.attention import fuse_attention


def test_the_fused_attention_is_the_models_own(checkpoints: dict[str, Path]) -> None:
    import torch


    _, model = reference(checkpoints["rand_trunc"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_position_bias_table" in name:
                weight.normal_()
    features = 20 * torch.randn(3, 1, 101, 64) - 30
    with torch.inference_mode():
        expected = model.get_audio_features(features).pooler_output
        fuse_attention(model)
        assert all("forward" in m.__dict__ for m in model.modules() if type(m).__name__ == "ClapAudioSelfAttention")
        np.testing.assert_allclose(model.get_audio_features(features).pooler_output, expected, atol=1e-5)
