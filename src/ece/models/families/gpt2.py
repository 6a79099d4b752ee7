"""GPT-2: attention, then FFN; weights are `Conv1D`, hence transposed."""

from ece.models.families.family import Family

FAMILY = Family(
    model_types=("gpt2",),
    layers="transformer.h",
    ffn_output="mlp.c_proj",
    final_norm="transformer.ln_f",
    transposed=True,
)
