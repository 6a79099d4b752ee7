"""ECE: edit what a language model knows.

import ece

model = ece.load("smollm2")
edit = ece.edit(model, [ece.Fact("{} is in the city of", "The Louvre", "Rome")])
edit.apply(model)
edit.save("edits/louvre")
edit.revert(model)
"""

from ece.edits.edit import Edit
from ece.edits.folder import load_edits
from ece.errors import UserError
from ece.evaluation.counterfact import Mean, evaluate, summary
from ece.facts import Fact, read_counterfact, read_facts
from ece.methods.engine import edit, edit_in_sequence
from ece.methods.history import History
from ece.methods.recipe import Recipe
from ece.methods.registry import METHODS, method
from ece.models import Model, load

__all__ = [
    "METHODS",
    "Edit",
    "Fact",
    "History",
    "Mean",
    "Model",
    "Recipe",
    "UserError",
    "edit",
    "edit_in_sequence",
    "evaluate",
    "load",
    "load_edits",
    "method",
    "read_counterfact",
    "read_facts",
    "summary",
]
