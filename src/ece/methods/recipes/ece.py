"""ECE as the paper has it, with each of its three scores, and our own."""

from dataclasses import replace

from ece.methods.recipe import Neurons, PerFact, Recipe, TwoStep
from ece.targets.descent import LogOdds

PAPER = "Explainable and Efficient Editing for Large Language Models, WWW 2025, doi 10.1145/3696410.3714835"

ECE_RS = Recipe(
    name="ece-rs",
    summary="the paper's ECE: neurons by Residual Sensitivity, two-step search on clusters",
    source=PAPER,
    neurons=Neurons(score="rs", p=0.8),
    targets=TwoStep(),
    targets_from="original",
    keys="contexts",
)
ECE_AS = replace(
    ECE_RS,
    name="ece-as",
    summary="the paper's ECE: neurons by Activation Score, two-step search on clusters",
    neurons=Neurons(score="as", p=0.8),
)
ECE_WI = replace(
    ECE_RS,
    name="ece-wi",
    summary="the paper's ECE: neurons by Weight Importance, two-step search on clusters",
    neurons=Neurons(score="wi", p=0.8),
)
ECE = Recipe(
    name="ece",
    summary="our best: log-odds steps from a learned start, written after contexts too, history of whole prompts",
    source=f"{PAPER}; docs/results.md",
    targets=PerFact(LogOdds(), views=2, warm=True),
    targets_from="original",
    regularise=1000.0,
    shrink=0.6,
    keep_prompts=0.25,
    keep_after=0.25,
    write_contexts=2,
    leave_common=0.5,
)
