"""Files that cannot be written, and packages that are not there: one line, and what was there before stays."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import tiny as make
from safetensors import SafetensorError
from shell import Ece
from transformers import PreTrainedModel

import ece as library
from ece.errors import UserError, requiring
from ece.files import Unwritten, new_file, new_folder
from ece.update.corpus import corpus

FULL = [
    SafetensorError("I/O error: No space left on device (os error 28)"),
    OSError(28, "No space left on device"),
    PermissionError(13, "No space left for you", "elsewhere"),
]


def written(new: Callable[[Path], AbstractContextManager[Path]], place: Path, error: Exception) -> None:
    """Write half of what was to be written."""
    with new(place) as temporary:
        (temporary if new is new_file else temporary / "part").write_text("half")
        raise error


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("new", [new_file, new_folder])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, error: Exception, new: Callable) -> None:
    place = tmp_path / "deeper" / "final"
    with pytest.raises(Unwritten, match=r"deeper/final: cannot be written \(.*No space left"):
        written(new, place, error)
    assert list(place.parent.iterdir()) == []


def test_what_a_file_held_stays_where_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text("old")
    with pytest.raises(UserError, match="cannot be written"):
        written(new_file, file, FULL[1])
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_takes_no_new_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise FULL[1]

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(Unwritten, match="new: cannot be written .*No space left"), new_folder(tmp_path / "new"):
        pass


def test_what_is_wrong_with_the_input_is_not_taken_for_the_disk(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^not this$") as raised, new_file(tmp_path / "file"):
        raise UserError("not this")
    assert not isinstance(raised.value, Unwritten)


def test_a_checkpoint_that_does_not_fit_is_one_line(
    ece: Ece, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make.build("llama")
    library.edit(model, make.FACTS[:1], library.method("ft-l").with_options({"layers": "1", "steps": "1"})).save(
        tmp_path / "edits"
    )

    def full(*_: object, **__: object) -> None:
        raise FULL[0]

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    refused = ece("export", "--model", checkpoint, "--edits", tmp_path / "edits", "--out", tmp_path / "out")
    assert refused.code == 2
    said = refused.err.strip().splitlines()[-1]
    assert said.endswith("out: cannot be written (I/O error: No space left on device (os error 28))")
    assert "Traceback" not in refused.err
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_names_its_extra(tiny_llama: library.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"^a dataset as corpus needs datasets; run: pip install 'ece-edit\[data\]'$"):
        next(iter(corpus("datasets:somewhere").windows(tiny_llama, 8)))
    wanted = r"^a thing needs no_such; run: pip install 'ece-edit\[things\]'$"
    with pytest.raises(UserError, match=wanted), requiring("a thing", "things"):
        importlib.import_module("no_such")
