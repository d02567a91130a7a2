"""Bad input: a ValueError that says what came, what was expected and how to fix it."""

import pytest
import torch
from attention_inputs import qkv
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    _SeqLenInfo,
)

from xformers.ops import fmha, memory_efficient_attention

Q, K, V = qkv(requires_grad=False)  # [2, 5, 3, 8], [2, 7, 3, 8], [2, 7, 3, 8]
ROW = [x[:1] for x in (Q, K, V)]

CASES = {
    "query ndim": ((Q[0, 0], K, V), {}, "query.ndim is 2, expected 3, 4 or 5", "[batch, seqlen, heads, head_dim]"),
    "key ndim": ((Q, K[:, :, 0], V), {}, "key.ndim is 3, expected 4 like the query's", "[batch, seqlen, head_dim]"),
    "value ndim": ((Q, K, V[..., None]), {}, "value.ndim is 5, expected 4", "groups"),
    "key batch": ((Q, K[:1], V), {}, "key.batch is 1, expected 2", "expand"),
    "value batch": ((Q, K, V[:1]), {}, "value.batch is 1, expected 2", "expand"),
    "key heads": ((Q, K[:, :, :1], V), {}, "key.heads is 1, expected 3", "expand"),
    "value heads": ((Q, K, V[:, :, :2]), {}, "value.heads is 2, expected 3", "expand"),
    "groups": (
        (Q[:, :, None], K[:, :, None].expand(2, 7, 2, 3, 8), V[:, :, None]),
        {},
        "key.groups is 2, expected 1",
        "expand",
    ),
    "value seqlen": ((Q, K, V[:, :6]), {}, "value.seqlen is 6, expected 7", "same positions"),
    "head_dim": ((Q, K[..., :6], V), {}, "key.head_dim is 6, expected 8", "only value may have its own"),
    "no head_dim": ((Q[..., :0], K[..., :0], V), {}, "query.head_dim is 0, expected 1 or more", "element"),
    "no value head_dim": ((Q, K, V[..., :0]), {}, "value.head_dim is 0, expected 1 or more", "element"),
    "key dtype": (
        (Q, K.double(), V),
        {},
        "key.dtype is fp64, expected fp32 like the query's",
        "tensor.to(query.dtype)",
    ),
    "value dtype": ((Q, K, V.bfloat16()), {}, "value.dtype is bf16, expected fp32", "autocast"),
    "key device": ((Q, K.to("meta"), V), {}, "key.device is meta, expected cpu like the query's", "tensor.to(device)"),
    "value device": ((Q, K, V.to("meta")), {}, "value.device is meta, expected cpu", "tensor.to(device)"),
    "negative p": ((Q, K, V), dict(p=-0.1), "p is -0.1", "share of weights to drop"),
    "p above 1": ((Q, K, V), dict(p=1.5), "p is 1.5", "expected a probability in [0, 1]"),
    "p nan": ((Q, K, V), dict(p=float("nan")), "p is nan", "expected a probability in [0, 1]"),
    "bias shape": (
        (Q, K, V, torch.zeros(5, 7)),
        {},
        "attn_bias.shape is [5, 7], expected [2, 3, 5, 7]",
        "bias.expand(...)",
    ),
    "bias heads": ((Q, K, V, torch.zeros(2, 1, 5, 7)), {}, "attn_bias.shape is [2, 1, 5, 7]", "expected [2, 3, 5, 7]"),
    "bias 3-D": (
        (Q[:, :, 0], K[:, :, 0], V[:, :, 0], torch.zeros(1, 5, 7)),
        {},
        "attn_bias.shape is [1, 5, 7]",
        "expected [2, 5, 7]",
    ),
    "bias dtype": (
        (Q, K, V, torch.zeros(2, 3, 5, 7).double()),
        {},
        "attn_bias.dtype is fp64, expected fp32 like the query's, or bool",
        "bias.to(query.dtype)",
    ),
    "bias device": (
        (Q, K, V, torch.zeros(2, 3, 5, 7, device="meta")),
        {},
        "attn_bias.device is meta, expected cpu",
        "bias.to(query.device)",
    ),
    "bias type": ((Q, K, V, "causal"), {}, "attn_bias is a str, expected None, a tensor or an AttentionBias", "Fix"),
    "packed batch": (
        (Q, K, V, BlockDiagonalMask.from_seqlens([5], [7])),
        {},
        "query.batch is 2, expected 1",
        "one batch row",
    ),
    "query lengths": (
        (*ROW, BlockDiagonalMask.from_seqlens([2, 2], [3, 4])),
        {},
        "(cu_seqlens_q[-1]) is 4, expected 5",
        "lengths of the concatenated sequences",
    ),
    "key lengths": (
        (*ROW, BlockDiagonalMask.from_seqlens([2, 3], [3, 5])),
        {},
        "(cu_seqlens_k[-1]) is 8, expected 7",
        "lengths of the concatenated sequences",
    ),
    "packed device": (
        (*ROW, BlockDiagonalMask.from_seqlens([2, 3], [3, 4], device="meta")),
        {},
        "cu_seqlens_q.device is meta, expected cpu",
        "attn_bias.to(query.device)",
    ),
    "3-D with another mask": (
        (Q[:, :, 0], K[:, :, 0], V[:, :, 0], LowerTriangularFromBottomRightMask()),
        {},
        "query.ndim is 3 beside a LowerTriangularFromBottomRightMask, expected 4 or 5",
        "[batch, seqlen, heads, head_dim]",
    ),
    "op": ((Q, K, V), dict(op="flash"), "op is flash, expected a pair of a forward and a backward", "leave it out"),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_message(name, requires_grad):
    args, options, *fragments = CASES[name]
    if requires_grad:
        args = [x.detach().requires_grad_() if getattr(x, "is_floating_point", bool)() else x for x in args]
    with pytest.raises(ValueError) as error:
        memory_efficient_attention(*args, **options)
    for fragment in (*fragments, "attention: ", ", expected ", "Fix: "):
        assert fragment in str(error.value), f"{fragment!r} not in: {error.value}"
    assert "C++" not in str(error.value) and "Exception raised from" not in str(error.value)


def test_message_shows_all_three_tensors():
    with pytest.raises(ValueError) as error:
        memory_efficient_attention(Q, K[..., :6], V.bfloat16()[..., :4].float())
    assert "query [2, 5, 3, 8] fp32 cpu · key [2, 7, 3, 6] fp32 cpu · value [2, 7, 3, 4] fp32 cpu" in str(error.value)


OFFSETS = dict(cu_seqlens_q=[0, 2, 5], cu_seqlens_k=[0, 3, 7])


@pytest.mark.parametrize(
    "changes, fragment",
    [
        (dict(cu_seqlens_q=[1, 2, 5]), "cu_seqlens_q[0] is 1, expected 0"),
        (dict(cu_seqlens_q=[0, 6, 5]), "cu_seqlens_q[2] is 5, expected 6 or more"),
        (dict(cu_seqlens_q=[0, 5]), "cu_seqlens_k is 3, expected 2"),
        (dict(cu_seqlens_q=[]), "cu_seqlens_q is empty"),
        (dict(cu_seqlens_k=[0, -1, 7]), "cu_seqlens_k[1] is -1, expected 0 or more"),
        (dict(cu_seqlens_k=None), "cu_seqlens_k is None, expected int32 [sequences + 1]"),
        (dict(cu_seqlens_q=None), "cu_seqlens_q is None, expected int32 [sequences + 1]"),
        (dict(seqused_k=[3, 5]), "keys of sequence 1 is [3, 8), expected a range inside [0, 7)"),
        (dict(seqused_k=[-1, 2]), "keys of sequence 0 is [0, -1)"),
        (dict(seqused_k=[3]), "seqused_k is 1, expected 2"),
        (dict(seqused_k=[3, 2], cu_seqlens_k=[0]), "cu_seqlens_k is 1, expected 3"),
        (dict(window_left=-2), "window_left is -2, expected 0 or more, or -1 (unbounded)"),
        (dict(p=0.5), "philox_state is None, expected contiguous int64 [2] where 0 < p < 1"),
        (dict(p=0.5, philox_state=[1, 2]), "philox_state is [2] int32 cpu"),
        (dict(p=0.5, philox_state=torch.tensor([1]).expand(2)), "philox_state is [2] int64 cpu, expected contiguous"),
        (dict(p=0.5, philox_state=torch.zeros(2).long().to("meta")), "philox_state.device is meta, expected cpu"),
        (dict(attn_bias=torch.zeros(1, 2, 5, 7)), "attn_bias.shape is [1, 2, 5, 7], expected [2 or 1, 3 or 1, longest"),
    ],
    ids=str,
)
def test_operator_arguments(changes, fragment):
    options = {
        name: torch.tensor(value, dtype=torch.int32) if isinstance(value, list) else value
        for name, value in {**OFFSETS, **changes}.items()
    }
    with pytest.raises(ValueError) as error:
        torch.ops.xformers.attention_forward(*ROW, **options)
    assert fragment in str(error.value), str(error.value)


def test_offsets_must_be_int32():
    with pytest.raises(ValueError, match=r"cu_seqlens_q is \[3\] int64 cpu, expected contiguous int32"):
        torch.ops.xformers.attention_forward(
            *ROW, cu_seqlens_q=torch.tensor([0, 2, 5]), cu_seqlens_k=torch.tensor([0, 3, 7])
        )


def test_backward_arguments():
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(Q, K, V)
    backward = fmha.memory_efficient_attention_backward
    with pytest.raises(ValueError, match=r"grad_out.shape is \[2, 5, 3, 7\], expected \[2, 5, 3, 8\]"):
        backward(out[..., :7], out, lse, Q, K, V)
    with pytest.raises(ValueError, match=r"lse is \[2, 3, 4\], expected \[batch, heads, seqlen_q or more\]"):
        backward(out, out, lse[..., :4], Q, K, V)
    with pytest.raises(NotImplementedError, match="p is 0.5, expected 0"):
        backward(out, out, lse, Q, K, V, p=0.5)
    with pytest.raises(NotImplementedError, match="p is 0.5, expected 0"):
        fmha.memory_efficient_attention_forward_requires_grad(Q, K, V, p=0.5)


@pytest.mark.parametrize(
    "build, fragment",
    [
        (lambda: LocalAttentionFromBottomRightMask(-1, 2), "window_left is -1, expected 0 or more"),
        (lambda: LocalAttentionFromBottomRightMask(1, -2), "window_right is -2, expected 0 or more"),
        (lambda: BlockDiagonalMask.from_seqlens([1, 2], [3]), "2 query lengths and 1 key lengths"),
        (lambda: BlockDiagonalMask.from_seqlens([1, -2]), "a sequence length is -2, expected 0 or more"),
        (
            lambda: _SeqLenInfo.from_seqlens(torch.tensor([1, 2])),
            "the sequence lengths are a tensor, expected Python ints",
        ),
        (lambda: BlockDiagonalMask.from_tensor_list([]), "the list of tensors is empty"),
        (
            lambda: BlockDiagonalMask.from_seqlens([1, 2]).split(torch.zeros(1, 4, 2)),
            "shape [1, 4, 2], expected [1, 3,",
        ),
        (
            lambda: BlockDiagonalMask.from_seqlens([1, 2], [3, 4]).split(torch.zeros(1, 3)),
            "use split_queries or split_kv",
        ),
        (lambda: BlockDiagonalMask.from_seqlens([1, 2]).materialize((4, 3)), "expected [..., 3, 3]"),
        (
            lambda: BlockDiagonalMask.from_tensor_lists_qkv([torch.zeros(1, 2, 3)], [torch.zeros(2, 2, 3)]),
            "the queries' batch sizes are [1], the keys' [2]",
        ),
    ],
)
def test_bias_construction(build, fragment):
    with pytest.raises(ValueError) as error:
        build()
    assert fragment in str(error.value) and "Fix: " in str(error.value)
