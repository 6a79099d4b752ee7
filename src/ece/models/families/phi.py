"""Phi-1 and Phi-2: attention and FFN read the same normed state, in parallel, as in GPT-J; Phi-3 has Llama's layout."""

from ece.models.families.family import Family

FAMILY = Family(
    model_types=("phi",),
    layers="model.layers",
    ffn_output="mlp.fc2",
    final_norm="model.final_layernorm",
)
