"""One declaration per architecture family, chosen by `config.model_type`."""

from ece.models.families import gpt2, gptj, gptneox, llama, phi, starcoder
from ece.models.families.family import Family

FAMILIES: tuple[Family, ...] = (
    gpt2.FAMILY,
    gptj.FAMILY,
    gptneox.FAMILY,
    llama.FAMILY,
    phi.FAMILY,
    starcoder.FAMILY,
)

__all__ = ["FAMILIES", "Family"]
