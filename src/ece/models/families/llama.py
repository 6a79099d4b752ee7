"""Llama and the families that kept its layout: gated FFN, RMS norm, rotary positions."""

from ece.models.families.family import Family

FAMILY = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    layers="model.layers",
    ffn_output="mlp.down_proj",
    final_norm="model.norm",
)
