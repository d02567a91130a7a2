"""The matrix: every bias x dtype x heads x head_dim_v x dropout x (forward, backward, by hand, gradient into the lse),
through the public functions, against the formula in fp64.

A failure lists every case that failed, `--case='<bias>:<dtype>,<heads>,d..,dv..,p..,<size>,<device>,<mode>'`; given to
pytest, it runs alone (all modes where none is named). Keys that belong
to no sequence hold NaN. What is not legal, and therefore not here, is in test_matrix_refused.py.
"""

import pytest
import torch
from attention_problems import DENSE
from devices import DEVICES
from matrix_cases import DTYPES, SHORT, run_all
from matrix_rows import ROWS


def test_there_are_25_biases_or_more():
    names = {row.name for row in ROWS}
    assert len(names) == len(ROWS) >= 25


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_matrix(row, dtype, device, record_property, pytestconfig):
    only = pytestconfig.getoption("--case", None)
    if row.in_sequences and device == "cuda":
        pytest.skip("CUDA kernels know no bias of packed sequences")
    count, failures = run_all(row, dtype, device, only)
    assert count, f"--case={only} is none of the {SHORT[dtype]} cases of {row.name}"
    record_property("matrix_bias", row.name)
    record_property("matrix_cases", count)
    assert not failures, f"{len(failures)} of {count} cases failed:\n" + "\n".join(failures)


def has_materialize(row):
    """None and plain tensors are what they are."""
    return row.on_top_of is not None or row.in_sequences or row.tensor is None and row.name != "None"


@pytest.mark.parametrize("size", DENSE)
@pytest.mark.parametrize("row", [row for row in ROWS if has_materialize(row)], ids=lambda row: row.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=SHORT.get)
def test_materialize(row, size, dtype):
    """`materialize` says what the pattern by hand says: 0 where attended (plus the tensor), -inf elsewhere."""
    problem = row.problem(size, (2,), dtype, seed=1)
    bias = row.bias(problem, problem.tensor)
    keys = problem.nk if problem.materialize_keys is None else problem.materialize_keys
    got = bias.materialize((problem.batch, 2, problem.nq, keys), dtype=dtype)
    expected = torch.zeros(problem.batch, 1, problem.nq, problem.nk, dtype=dtype)
    expected.masked_fill_(~problem.visible(), -torch.inf)
    if problem.tensor is not None:
        expected = expected + problem.tensor
    assert got.dtype == dtype and got.shape[:3] == (problem.batch, 2, problem.nq)
    width = got.shape[-1]  # paged: as many rows as the pages of the table span
    assert torch.equal(got, expected.expand(-1, 2, -1, -1)[..., :width])
    assert (expected[..., width:] == -torch.inf).all()
