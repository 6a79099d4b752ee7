"""`ece export`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ece.cli.options import AsJson, DeviceMap, Dtype, ModelName, RemoteCode, refuse_idle
from ece.cli.output import show

log = logging.getLogger(__name__)


def export(
    context: typer.Context,
    edits: Annotated[Path, typer.Option(help="Folder of edits made by `ece edit`.")],
    output: Annotated[Path, typer.Option("--out", help="New folder for the checkpoint or the adapter.")],
    model: ModelName = "smollm2",
    lora: Annotated[
        bool, typer.Option("--lora", help="A PEFT adapter; above rank 512, which no server takes, a checkpoint.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="The adapter's base model; by default where --model was loaded from.")
    ] = None,
    shard: Annotated[str, typer.Option(help="Largest size of a checkpoint's file.")] = "4GB",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write the edited model as a checkpoint that transformers loads, or as a LoRA adapter; verified on the spot."""
    from ece.edits.export import export as exported
    from ece.edits.folder import load_edits
    from ece.models import load

    if not lora:
        refuse_idle(context, "--lora", "base")
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    made = load_edits(edits, loaded)
    facts = sum(len(edit.facts) for edit in made)
    report: dict[str, Any] = {"edits": str(edits), "facts": facts, "verified": True}
    if lora:
        from ece.edits.lora import HIGHEST_RANK, export_lora, rank_of

        rank = rank_of(made)
        if rank <= HIGHEST_RANK:
            found = export_lora(loaded, made, output, base)
            report |= {"adapter": str(output), **asdict(found)}
            same = "merges to the same bits" if found.same_bits else f"merges to within {found.weights:.2g}"
            text = f"{facts} facts as an adapter of rank {rank} in {output}; it {same}"
            show(as_json, report, f"{text}; in bfloat16 weights are off by {found.weights_bfloat16:.2g} at most")
            return
        log.warning("an adapter would have rank %d, and servers take %d at most: merging instead", rank, HIGHEST_RANK)
        report["rank"] = rank
    exported(loaded, made, output, shard)
    report["checkpoint"] = str(output)
    show(as_json, report, f"{facts} facts merged into {output}; its weights are the edited model's, bit for bit")
