"""Where a fact is, and why these neurons were chosen: as data, as tables (`tables`), as pictures (`plots`)."""

from ece.explain.explaining import explain, from_edits
from ece.explain.explanation import Explanation

__all__ = ["Explanation", "explain", "from_edits"]
