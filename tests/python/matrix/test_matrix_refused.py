"""What the matrix leaves out because it is not legal, row by row, and that each of it is refused and not guessed at."""

import pytest
import torch
from matrix_rows import ROWS

from xformers.ops import fmha, memory_efficient_attention

IDS = [row.name for row in ROWS]


def inputs(row, heads=(2,), batch=None, dtype=torch.float32, requires_grad=False):
    p = row.problem("few", heads, dtype, seed=3)
    batch = p.batch if batch is None else batch
    qkv = [torch.randn(batch, n, *heads, 8, dtype=dtype, requires_grad=requires_grad) for n in (p.nq, p.nk, p.nk)]
    return qkv, row.bias(p, p.tensor)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_no_dropout_where_its_mask_would_be_lost(row):
    """The halves by hand and partial results hand no random state on."""
    qkv, bias = inputs(row)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(*qkv, bias)
    with pytest.raises(NotImplementedError):
        fmha.memory_efficient_attention_forward_requires_grad(*qkv, bias, p=0.1)
    with pytest.raises(NotImplementedError):
        fmha.memory_efficient_attention_backward(out, out, lse, *qkv, bias, p=0.1)
    with pytest.raises(NotImplementedError):
        fmha.memory_efficient_attention_partial(*qkv, bias, p=0.1)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("row", [row for row in ROWS if not row.takes_3d], ids=lambda row: row.name)
def test_no_3d_inputs_beside_other_masks(row, requires_grad):
    qkv, bias = inputs(row, heads=(), requires_grad=requires_grad)
    with pytest.raises(ValueError, match=type(bias).__name__):
        memory_efficient_attention(*qkv, bias)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_no_batch_beside_packed_sequences(row):
    qkv, bias = inputs(row, batch=2)
    if isinstance(bias, fmha.attn_bias.AttentionBias) and isinstance(bias, fmha.attn_bias.VARLEN_BIASES):
        with pytest.raises(ValueError, match="expected 1"):
            memory_efficient_attention(*qkv, bias)
    else:
        assert memory_efficient_attention(*qkv, bias).shape == qkv[0].shape


@pytest.mark.parametrize("row", ROWS, ids=IDS)
@pytest.mark.parametrize("which", range(3))
def test_no_mixed_dtypes(row, which):
    qkv, bias = inputs(row)
    qkv[which] = qkv[which].double()
    with pytest.raises(ValueError, match="fp64"):
        memory_efficient_attention(*qkv, bias)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_no_second_derivatives(row):
    qkv, bias = inputs(row, requires_grad=True)
    (grad,) = torch.autograd.grad(memory_efficient_attention(*qkv, bias).sum(), qkv[:1], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_no_tensor_of_the_wrong_length(row):
    """One query too many, too few keys: a bias that knows its lengths says so; the others take any."""
    (query, key, value), bias = inputs(row)
    knows = bias is not None and (row.tensor is not None or hasattr(bias, "q_seqinfo"))
    longer = torch.cat([query, query[:, :1]], 1)
    if not knows:
        assert memory_efficient_attention(longer, key, value, bias).shape == longer.shape
        return
    with pytest.raises(ValueError):
        memory_efficient_attention(longer, key, value, bias)
    fewer = slice(0, 1)  # too few for the ranges of padded, gappy and paged keys; the others count exactly
    with pytest.raises(ValueError):
        memory_efficient_attention(query, key[:, fewer], value[:, fewer], bias)
