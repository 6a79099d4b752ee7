"""Where text for the key statistics comes from."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from ece.errors import UserError
from ece.facts import DEMONSTRATED, read_counterfact, shipped_file
from ece.models import Model
from ece.update.corpus import corpus


def text_of(name: str, model: Model, windows: int, length: int = 64) -> str:
    """The beginning of a corpus, as the model's tokenizer gives it back."""
    ids = [token for window in islice(corpus(name).windows(model, length), windows) for token in window]
    return str(model.tokenizer.decode(ids))


def test_windows_are_full_and_in_order(tiny_llama: Model, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The Eiffel Tower is in Paris.\n\nVictor Hugo grew up speaking French.\n" * 20, encoding="utf-8")
    windows = list(corpus(str(file)).windows(tiny_llama, 16))
    assert {len(window) for window in windows} == {16}
    joined = str(tiny_llama.tokenizer.decode([token for window in windows for token in window]))
    assert joined.startswith("The Eiffel Tower is in Paris.\nVictor Hugo")


def test_shipped_sentences_leave_out_the_demonstration(tiny_llama: Model) -> None:
    records = read_counterfact(shipped_file())
    text = text_of("shipped", tiny_llama, windows=400)
    assert records[DEMONSTRATED].reference_texts[0] in text
    for record in records[:DEMONSTRATED]:
        assert record.fact().question not in text
        assert all(sentence not in text for sentence in record.reference_texts)


def test_python_has_enough_text_for_the_default(tiny_llama: Model) -> None:
    assert len(text_of("python", tiny_llama, windows=10_000)) > 200_000  # 24 tokens for each of 1,536 neurons


def test_sampling_repeats_and_leaves_the_random_state_alone(tiny_llama: Model) -> None:
    state = torch.random.get_rng_state()
    first = list(islice(corpus("self").windows(tiny_llama, 8), 70))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == list(islice(corpus("self").windows(tiny_llama, 8), 70))
    assert len({tuple(window) for window in first}) > 60


def test_a_dataset_on_disk(tiny_llama: Model, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the datasets package is an extra")
    (tmp_path / "train.txt").write_text("The Colosseum is in Rome.\nParis is a city.\n" * 30, encoding="utf-8")
    assert text_of(f"datasets:{tmp_path}", tiny_llama, windows=2).startswith("The Colosseum is in Rome.\nParis")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        corpus(str(tmp_path / "nothing.txt"))


def test_identity_follows_the_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one")
    first = corpus(str(file)).identity
    file.write_text("two")
    assert corpus(str(file)).identity != first


def test_a_dataset_without_text(tiny_llama: Model, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the datasets package is an extra")
    (tmp_path / "rows.json").write_text('{"sentence": "Paris"}\n')
    with pytest.raises(UserError, match="no field 'text', but sentence"):
        text_of(f"datasets:{tmp_path}", tiny_llama, windows=2)
