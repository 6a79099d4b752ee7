"""GPT-J: attention and FFN read the same normed state, in parallel."""

from ece.models.families.family import Family

FAMILY = Family(
    model_types=("gptj",),
    layers="transformer.h",
    ffn_output="mlp.fc_out",
    final_norm="transformer.ln_f",
)
