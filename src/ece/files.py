"""Where files go, and how they get there (a temporary name first, onto the disk, then one rename); what they hold."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from safetensors import SafetensorError, safe_open

from ece.errors import UserError, reason_of

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$ECE_CACHE`, or the user's cache folder for ece."""
    return Path(os.environ.get("ECE_CACHE") or platformdirs.user_cache_dir("ece"))


def read_text(file: Path) -> str:
    """A file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from error


def finite(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Unwritten(UserError, OSError):
    """A file or folder could not be written; what was there before is as it was."""


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `final` when the block ends well and vanishes when it does not.

    Raises:
        Unwritten: the disk is full, or does not take it for another reason.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with _writing(final):
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        try:
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                open_to_others(path)
                onto_disk(path)
            if final.exists():  # another process was faster
                shutil.rmtree(temporary)
            else:
                temporary.rename(final)
                onto_disk(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """A path to write to, which becomes `final` (replacing it) when the block ends well.

    Raises:
        Unwritten: the disk is full, or does not take it for another reason.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with _writing(final):
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")  # no other process's, on any machine
        try:
            yield temporary
            open_to_others(temporary)
            onto_disk(temporary)
            temporary.replace(final)
            onto_disk(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing(final: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise Unwritten(f"{final}: cannot be written ({reason})") from error


def open_to_others(path: Path) -> None:
    """Who may read a file or folder is what the umask says: safetensors and `mkdtemp` leave it to the owner alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def onto_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk (fsync)."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sound(file: Path) -> bool:
    """Whether a file of tensors is there and whole. For what is kept to save time: a damaged one is made again."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except FileNotFoundError:
        return False
    except SafetensorError as error:
        log.warning("%s is damaged (%s), and made again", file, error)
        return False
