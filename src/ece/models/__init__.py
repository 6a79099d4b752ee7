"""Loading a model and reaching into it. Knows nothing of facts."""

from ece.models.load import load
from ece.models.model import Model
from ece.models.overlay import Delta, LowRank

__all__ = ["Delta", "LowRank", "Model", "load"]
