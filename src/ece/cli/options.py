"""Options that several commands have, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ece.errors import UserError

ModelName = Annotated[
    str, typer.Option("--model", "-m", help="smollm2 (embedded), a local folder, a GGUF file, or a hub id.")
]
EditsFolder = Annotated[Path | None, typer.Option("--edits", help="Folder of edits made by `ece edit`.")]
FACTS = "JSON or JSON lines: {prompt, subject, target}, CounterFact or zsRE records."
FactsFile = Annotated[Path | None, typer.Option("--facts", help=FACTS)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[str | None, typer.Option(help="Where the weights go, e.g. auto, cuda or cpu; needs accelerate.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let the checkpoint's own code run.")]
Method = Annotated[str, typer.Option(help="ece, ece-rs, memit, rome, alphaedit, ...; `ece methods` lists them.")]
Preset = Annotated[
    str, typer.Option(help="auto (the model's own, if one is known), none, or a name; `ece methods NAME` shows those.")
]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, e.g. layers=3-7 or neurons.p=0.9; see `ece methods NAME`.")
]


def refuse_idle(context: typer.Context, needs: str, *names: str) -> None:
    """Refuse options that were typed and would do nothing.

    Args:
        context: of the command.
        needs: what is missing for them to do something.
        names: of their parameters.

    Raises:
        UserError: one of them was typed.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise UserError(f"{parameter.opts[0]} does nothing without {needs}")


def given_facts(file: Path | None, subject: str | None, prompt: str | None, target: str | None) -> list[Any]:
    """The facts of a file, or the one that is spelt out.

    Raises:
        UserError: neither or both are given, or the file is not in order.
    """
    from ece.facts import Fact, read_facts

    if file is not None:
        if subject or prompt or target:
            raise UserError("give either --facts FILE, or --subject, --prompt and --target; not both")
        return read_facts(file)
    if subject is None or prompt is None or target is None:
        raise UserError("give --facts FILE, or all of --subject, --prompt and --target")
    return [Fact(prompt, subject, target)]


def chosen_method(name: str, options: list[str] | None) -> Any:
    """The method of that name with `key=value` options.

    Raises:
        UserError: there is no such method or option.
    """
    from ece.methods.registry import method

    return method(name).with_options(_pairs(options))


def fitted_method(name: str, options: list[str] | None, preset: str, model: Any) -> Any:
    """The method with a preset's options for the model, and the given options over them.

    Raises:
        UserError: there is no such method, option or preset.
    """
    from ece.methods.presets import with_preset
    from ece.methods.registry import method

    return with_preset(method(name), model, preset).with_options(_pairs(options))


def _pairs(options: list[str] | None) -> dict[str, str]:
    pairs = [option.partition("=") for option in options or []]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"--set {key}: write key=value")
    return {key: value for key, _, value in pairs}
