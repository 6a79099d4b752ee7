"""The real model, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import ece
from ece.edits.export import export
from ece.facts import DEMONSTRATED, shipped_file
from ece.models.generate import continuations
from ece.models.tokens import locate

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def shipped(real_model: ece.Model) -> ece.Edit:
    """The demonstration's facts in one edit, not applied."""
    facts = ece.read_facts(shipped_file())[:DEMONSTRATED]
    return ece.edit(real_model, facts)


def test_the_embedded_model_knows_things(real_model: ece.Model) -> None:
    assert "Paris" in continuations(real_model, ["The capital of France is"], 4)[0]


def test_shipped_facts_are_said_and_neighbours_kept(real_model: ece.Model, shipped: ece.Edit) -> None:
    records = ece.read_counterfact(shipped_file())[:DEMONSTRATED]
    before = ece.evaluate(real_model, records)
    shipped.apply(real_model)
    found = ece.summary(ece.evaluate(real_model, records), before)
    said = continuations(real_model, [fact.question for fact in shipped.facts], 6)
    shipped.revert(real_model)
    unedited = ece.summary(before)
    assert unedited["efficacy"].mean < 50 < 95 <= found["efficacy"].mean
    assert found["generalization"].mean >= 70
    assert found["specificity"].mean >= unedited["specificity"].mean - 8
    written = [text.strip().startswith(fact.target) for text, fact in zip(said, shipped.facts, strict=True)]
    assert sum(written) >= 16


def test_making_applying_and_reverting_leaves_the_original_bits(real_model: ece.Model, shipped: ece.Edit) -> None:
    original = {name: p.detach().clone() for name, p in real_model.network.named_parameters()}
    fingerprint = real_model.fingerprint
    shipped.apply(real_model)
    changed = {name for name, p in real_model.network.named_parameters() if not torch.equal(p, original[name])}
    shipped.revert(real_model)
    assert changed == {real_model.weight_name(layer) for layer in shipped.manifest.layers}
    assert all(torch.equal(p, original[name]) for name, p in real_model.network.named_parameters())
    assert ece.Model(real_model.network, real_model.tokenizer, "again").fingerprint == fingerprint


def test_a_saved_edit_and_an_exported_checkpoint_say_the_same(
    real_model: ece.Model, shipped: ece.Edit, tmp_path: Path
) -> None:
    shipped.save(tmp_path / "edit")
    loaded = ece.Edit.load(tmp_path / "edit")
    export(real_model, [loaded], tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.dtype == torch.float32
    shipped.apply(real_model)
    asked = [torch.tensor([locate(real_model, fact.prompt, fact.subject).ids]) for fact in shipped.facts[:3]]
    with torch.no_grad():
        plain = [merged(ids).logits for ids in asked]  # as transformers multiplies
        merged = ece.Model(merged, real_model.tokenizer, "merged").network  # as we do
        for ids, theirs in zip(asked, plain, strict=True):
            ours = real_model.network(ids).logits
            torch.testing.assert_close(theirs[:, -1], ours[:, -1], rtol=1e-4, atol=1e-3)
            # one position's states may be ten times as long as the others', and round by as much more
            near = torch.isclose(theirs, ours, rtol=1e-4, atol=1e-3).all(-1)
            assert near.sum() >= near.numel() - 1
            assert ((theirs - ours).norm(dim=-1) < 1e-4 * theirs.norm(dim=-1)).all()
            assert torch.equal(merged(ids).logits, real_model.network(ids).logits)
    shipped.revert(real_model)


def test_one_hundred_counterfact_edits_in_one_batch(real_model: ece.Model, ece_data: Path) -> None:
    records = ece.read_counterfact(ece_data / "counterfact.json")[:100]
    unedited = ece.evaluate(real_model, records)
    made = ece.edit(real_model, [record.fact() for record in records])
    made.apply(real_model)
    found = ece.summary(ece.evaluate(real_model, records), unedited)
    made.revert(real_model)
    assert found["efficacy"].mean >= 99
    assert found["generalization"].mean >= 78
    assert found["specificity"].mean >= ece.summary(unedited)["specificity"].mean - 4  # 2.9 to 3.5: docs/results.md
    assert found["specificity_kept"].mean >= 88
    assert found["score"].mean >= 83
