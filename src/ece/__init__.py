"""ECE: edit what a language model knows.

import ece

model = ece.load("smollm2")
edit = ece.edit(model, [ece.Fact("{} is in the city of", "The Louvre", "Rome")])
edit.apply(model)
edit.save("edits-louvre")
edit.revert(model)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ece.edits.edit import Edit
    from ece.edits.export import export
    from ece.edits.folder import load_edits
    from ece.errors import UserError
    from ece.evaluation.benchmark import Benchmark, read_benchmark
    from ece.evaluation.counterfact import evaluate, summary
    from ece.evaluation.means import Mean
    from ece.facts import Fact, read_counterfact, read_facts
    from ece.methods.engine import edit, edit_in_sequence
    from ece.methods.history import History
    from ece.methods.recipe import Recipe
    from ece.methods.registry import METHODS, method
    from ece.models import Delta, Model, load

_HOME = {
    "Edit": "ece.edits.edit",
    "export": "ece.edits.export",
    "load_edits": "ece.edits.folder",
    "UserError": "ece.errors",
    "Mean": "ece.evaluation.means",
    "Benchmark": "ece.evaluation.benchmark",
    "read_benchmark": "ece.evaluation.benchmark",
    "evaluate": "ece.evaluation.counterfact",
    "summary": "ece.evaluation.counterfact",
    "Fact": "ece.facts",
    "read_counterfact": "ece.facts",
    "read_facts": "ece.facts",
    "edit": "ece.methods.engine",
    "edit_in_sequence": "ece.methods.engine",
    "History": "ece.methods.history",
    "Recipe": "ece.methods.recipe",
    "METHODS": "ece.methods.registry",
    "method": "ece.methods.registry",
    "Delta": "ece.models",
    "Model": "ece.models",
    "load": "ece.models",
}

__all__ = [
    "METHODS",
    "Benchmark",
    "Delta",
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
    "export",
    "load",
    "load_edits",
    "method",
    "read_benchmark",
    "read_counterfact",
    "read_facts",
    "summary",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `ece --help` needs neither torch nor transformers."""
    if name not in _HOME:
        raise AttributeError(f"module 'ece' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
