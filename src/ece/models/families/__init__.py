"""One declaration per architecture family, chosen by `config.model_type`."""

from ece.models.families import gpt2, gptj, llama
from ece.models.families.family import Family

FAMILIES: tuple[Family, ...] = (gpt2.FAMILY, gptj.FAMILY, llama.FAMILY)

__all__ = ["FAMILIES", "Family"]
