"""StarCoder2: Llama's layout with a plain FFN and layer norms."""

from ece.models.families.family import Family

FAMILY = Family(
    model_types=("starcoder2",),
    layers="model.layers",
    ffn_output="mlp.c_proj",
    final_norm="model.norm",
)
