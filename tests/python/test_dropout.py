"""Dropout: the rate, the stream, and the same mask in backward."""

import pytest
import torch
from attention_inputs import qkv, random
from attention_reference import check_attention
from torch.utils.checkpoint import checkpoint
from xformers.ops.fmha.attn_bias import BlockDiagonalMask, LowerTriangularMask
from xformers.triton import FusedDropoutBias, dropout

from xformers.ops import memory_efficient_attention

attention_forward = torch.ops.xformers.attention_forward


def kept_weights(query, key, p, state, mask=None):
    """Which weights dropout keeps, [batch, heads, seqlen_q, seqlen_k]: with value = identity, out is the weights."""
    batch, nk, heads, _ = key.shape
    identity = torch.eye(nk, dtype=query.dtype)[None, :, None].expand(batch, nk, heads, nk)
    operands = mask.lower(query.device)[:4] if mask is not None else ()
    out, _, _ = attention_forward(query.detach(), key.detach(), identity, *operands, p=p, philox_state=state)
    return (out > 0).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mask", [None, LowerTriangularMask()], ids=["full", "causal"])
def test_backward_uses_the_mask_of_forward(mask, dtype):
    p, state = 0.4, torch.tensor([11, 22])
    query, key, value = qkv(nq=33, nk=70, dtype=dtype)
    kept = kept_weights(query, key, p, state, mask)
    bias = mask.materialize((33, 70)) if mask is not None else None

    def attend(q, k, v, _):
        operands = mask.lower(q.device)[:4] if mask is not None else ()
        return attention_forward(q, k, v, *operands, p=p, philox_state=state)[0]

    check_attention(attend, query, key, value, bias=bias, kept=kept, p=p)


def test_bias_gradient_under_dropout():
    p, state = 0.4, torch.tensor([5, 6])
    query, key, value = qkv(nq=9, nk=20)
    bias = random((2, 3, 9, 20), seed=8, requires_grad=True)
    kept = kept_weights(query, key, p, state)

    def attend(q, k, v, b):
        return attention_forward(q, k, v, b, p=p, philox_state=state)[0]

    check_attention(attend, query, key, value, tensor_bias=bias, kept=kept, p=p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate(p):
    query, key, _ = qkv(batch=4, nq=64, nk=200, heads=(4,))
    kept = kept_weights(query, key, p, torch.tensor([1, 2]))
    count = kept.numel()
    deviation = (p * (1 - p) / count) ** 0.5
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * deviation
    # no row, head or batch element repeats another's mask
    rows = kept.reshape(-1, 200)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_different_states_drop_differently():
    query, key, _ = qkv(nq=40, nk=40)
    first = kept_weights(query, key, 0.5, torch.tensor([1, 2]))
    for state in ([1, 3], [2, 2], [-1, 2], [1, 2 + 2**40]):
        agreement = (first == kept_weights(query, key, 0.5, torch.tensor(state))).double().mean()
        assert 0.45 < agreement < 0.55


def test_packed_sequences_draw_their_own_masks():
    mask = BlockDiagonalMask.from_seqlens([30, 30])
    query, key, _ = qkv(batch=1, nq=60, nk=60, heads=(1,))
    kept = kept_weights(query, key, 0.5, torch.tensor([1, 2]), mask)[0, 0]
    agreement = (kept[:30, :30] == kept[30:, 30:]).double().mean()
    assert 0.4 < agreement < 0.6


def test_seed_repeats_and_calls_differ():
    query, key, value = qkv()
    torch.manual_seed(7)
    first, second = (memory_efficient_attention(query, key, value, p=0.5) for _ in range(2))
    torch.manual_seed(7)
    again = memory_efficient_attention(query, key, value, p=0.5)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_without_dropout_the_generator_is_left_alone():
    query, key, value = qkv()
    state = torch.get_rng_state()
    memory_efficient_attention(query, key, value, p=0.0)
    assert torch.equal(state, torch.get_rng_state())


def test_applies_without_gradients_too():
    query, key, value = qkv(requires_grad=False)
    plain = memory_efficient_attention(query, key, value)
    assert not torch.equal(plain, memory_efficient_attention(query, key, value, p=0.5))


def test_dropping_everything_gives_zeros():
    query, key, value = qkv()
    out = memory_efficient_attention(query, key, value, p=1.0)
    grads = torch.autograd.grad(out.sum(), (query, key, value))
    assert (out == 0).all() and all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant):
    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, LowerTriangularMask(), 0.5)

    def checkpointed(q, k, v):
        return checkpoint(attend, q, k, v, use_reentrant=use_reentrant)

    results = []
    for run in (attend, checkpointed):
        torch.manual_seed(1)
        inputs = qkv()
        out = run(*inputs)
        out.sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=False))


DRAWS = {
    "attention": lambda x: memory_efficient_attention(x, x, x, None, 0.5),
    "dropout": lambda x: dropout(x, 0.5),
    "FusedDropoutBias": lambda x: FusedDropoutBias(0.5, 8)(x),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", DRAWS)
def test_randomness_of_vmap(name):
    """By default an error, "different" a mask per example, "same" one for all."""
    x = torch.ones(3, 1, 40, 2, 8)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(DRAWS[name])(x)
    out = torch.vmap(DRAWS[name], randomness="same")(x)
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
    out = torch.vmap(DRAWS[name], randomness="different")(x)
    assert not any(torch.equal(out[a], out[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    inner = torch.vmap(torch.vmap(DRAWS[name], randomness="same"), randomness="different")
    nested = inner(torch.ones(2, 2, 1, 40, 2, 8))
    assert torch.equal(nested[0, 0], nested[0, 1]) and not torch.equal(nested[0, 0], nested[1, 0])
