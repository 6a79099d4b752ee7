"""GPT-NeoX, which Pythia is made of: attention and FFN side by side, each with a norm of its own."""

from ece.models.families.family import Family

FAMILY = Family(
    model_types=("gpt_neox",),
    layers="gpt_neox.layers",
    ffn_output="mlp.dense_4h_to_h",
    final_norm="gpt_neox.final_layer_norm",
)
