"""Llama and the types that kept its layout: a gated FFN, a norm before it and none behind, rotary positions."""

from ece.models.families.family import Family

FAMILY = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3", "olmo"),
    layers="model.layers",
    ffn_output="mlp.down_proj",
    final_norm="model.norm",
)
