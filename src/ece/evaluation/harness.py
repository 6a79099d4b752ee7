"""Any task of lm-evaluation-harness on the model in memory, edited or not; needs `ece-edit[eval]`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from ece.errors import UserError, reason_of, requiring
from ece.models import Model


@dataclass(frozen=True)
class Measured:
    """A metric of the harness, in its own units."""

    value: float
    se: float
    """As the harness gives it; NaN where it gives none."""

    records: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.se:.3f}"


def load_tasks(names: Sequence[str]) -> list[Any]:
    """The harness's tasks and groups, with their data.

    Args:
        names: of tasks or groups that lm-eval has (most download their data), or paths of task YAML files.

    Raises:
        UserError: lm-eval is not installed, or it has no such task or cannot load its data.
    """
    with requiring("a task of lm-evaluation-harness", "eval"):
        from lm_eval.tasks import TaskManager
    manager = TaskManager()
    return [task for name in names for task in _loaded(manager, name)]


def _loaded(manager: Any, name: str) -> list[Any]:
    try:
        loaded = manager.load([name])
    except KeyError:
        raise UserError(f"lm-eval has no task {name!r}; `lm-eval ls tasks` lists them, or give a YAML file") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"lm-eval cannot load task {name!r}: {reason_of(error)}") from error
    return [*loaded["groups"].values()] or [*loaded["tasks"].values()]


def harness(
    model: Model, tasks: Sequence[Any], *, limit: int | None = None, batch_size: int = 8, shots: int | None = None
) -> dict[str, dict[str, Measured]]:
    """Metrics by task and by the harness's own names for them, such as `acc_norm`.

    Args:
        model: as it is now; neither its weights nor its tokenizer are changed.
        tasks: from `load_tasks`.
        limit: only so many records of each task.
        batch_size: rows in one pass.
        shots: examples in each prompt; None for the task's own choice.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrap, run = cast(Any, HFLM), cast(Any, simple_evaluate)  # their decorators hide their parameters
    wrapped = wrap(
        pretrained=model.network, tokenizer=copy.deepcopy(model.tokenizer), batch_size=batch_size, backend="causal"
    )
    results = run(
        wrapped,
        tasks=list(tasks),
        task_manager=TaskManager(include_defaults=False),  # they are loaded: no index of thousands of others
        limit=limit,
        num_fewshot=shots,
        log_samples=False,
        random_seed=None,  # the process's generators stay as they are
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    counts = results["n-samples"]
    return {
        name: _metrics(found, counts[name]["effective"] if name in counts else 0)
        for name, found in results["results"].items()
    }


def _metrics(found: dict[str, Any], records: int) -> dict[str, Measured]:
    """`{"acc,none": 0.5, "acc_stderr,none": 0.1}` as `{"acc": ...}`; a filter other than `none` stays in the name."""
    metrics = {}
    for key, value in found.items():
        name, comma, kept = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float):
            spread = found.get(f"{name}_stderr,{kept}")
            se = float(spread) if isinstance(spread, int | float) else math.nan
            metrics[name if kept == "none" else f"{name} ({kept})"] = Measured(float(value), se, records)
    return metrics
