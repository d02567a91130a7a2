"""Every list that must hold all biases holds those that the package exports, and no others."""

import json
import sys
from pathlib import Path

import pytest
import torch
from attn_bias_cases import CASES, EXAMPLES, OPERATORS
from xformers.ops.fmha import attn_bias as ab

ROOT = Path(__file__).parents[2]
ABSTRACT = {"AttentionBias", "AttentionBiasSubTensor"}
EXPORTED = {
    name
    for name in ab.__all__
    if isinstance(getattr(ab, name), type) and issubclass(getattr(ab, name), ab.AttentionBias) and name not in ABSTRACT
}


def in_contract_table():
    taken = json.loads(torch.ops.xformers.attention_contract("genericF"))["SUPPORTED_ATTN_BIAS_TYPES"]
    return set(taken) - {"None", "Tensor"}


def in_matrix():
    sys.path.append(str(Path(__file__).parent / "matrix"))
    from matrix_rows import ROWS

    return {row.name.split(",")[0] for row in ROWS}


def in_documentation():
    text = (ROOT / "docs" / "ops" / "attention-biases.md").read_text()
    return {name for name in EXPORTED if f"`{name}" in text}


LISTS = {
    "golden examples": lambda: {name.split(",")[0] for name in EXAMPLES},
    "who takes it, in the golden examples": lambda: set(OPERATORS),
    "table of contracts": in_contract_table,
    "matrix": lambda: in_matrix() & EXPORTED,
    "documentation": in_documentation,
}


@pytest.mark.parametrize("name", LISTS)
def test_holds_every_bias(name):
    assert LISTS[name]() == EXPORTED


def test_biases_over_several_sequences_are_known_as_such():
    for name, case in CASES.items():
        bias = case.build()
        assert isinstance(bias, ab.VARLEN_BIASES) == hasattr(bias, "q_seqinfo"), name
