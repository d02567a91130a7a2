"""Every rule of input validation, through every entry point: ValueError, with its facts in the text.

V1 ndim · V2 devices · V3 device of a bias · V4 dtypes · V5 3-D beside a mask · V6 shape of a dense bias · V7 batch of
packed sequences · V8 probability · V9 sizes that do not match
"""

import pytest
import torch
from attention_inputs import qkv
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha

Q, K, V = qkv(head_dim=16, requires_grad=False)  # [2, 5, 3, 16], [2, 7, 3, 16], [2, 7, 3, 16]
ROW = [x[:1] for x in (Q, K, V)]
THREE = [x[:, :, 0] for x in (Q, K, V)]
FIVE = [x[:, :, None] for x in (Q, K, V)]
PAGES = torch.tensor([[0], [1]], dtype=torch.int32)

PACKED = {
    "BlockDiagonalMask": lambda device=None: ab.BlockDiagonalMask.from_seqlens([2, 3], [3, 4], device=device),
    "BlockDiagonalCausalMask": lambda device=None: ab.BlockDiagonalCausalMask.from_seqlens(
        [2, 3], [3, 4], device=device
    ),
    "BlockDiagonalPaddedKeysMask": lambda device=None: ab.BlockDiagonalPaddedKeysMask.from_seqlens(
        [2, 3], 3, [3, 2], device=device
    ),
    "BlockDiagonalGappyKeysMask": lambda device=None: ab.BlockDiagonalGappyKeysMask.from_seqlens(
        [2, 3], [0, 3, 7], [3, 4], device=device
    ),
    "PagedBlockDiagonalPaddedKeysMask": lambda device=None: ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        [2, 3], [3, 2], PAGES.to(device or "cpu"), 3, device=device
    ),
    "PagedBlockDiagonalGappyKeysMask": lambda device=None: ab.PagedBlockDiagonalGappyKeysMask.from_seqlens(
        [2, 3], [0, 1], [3, 2], PAGES.to(device or "cpu"), 3, device=device
    ),
}


def keys_for(name):
    count = {"BlockDiagonalPaddedKeysMask": 6}.get(name, 6 if name.startswith("Paged") else 7)
    return [Q[:1], K[:1, :count], V[:1, :count]]


# name -> (inputs, facts of the message)
CASES = {
    "V1 query": ((Q[0, 0], K, V), ["query", "[3, 16]", "[2, 7, 3, 16]"]),
    "V1 key": ((Q, K[:, :, 0], V), ["key", "[2, 5, 3, 16]", "[2, 7, 16]"]),
    "V1 value": ((Q, K, V[:, :, None]), ["value", "[2, 7, 1, 3, 16]"]),
    "V1 all": ([x[..., None, None] for x in (Q, K, V)], ["query", "[2, 5, 3, 16, 1, 1]"]),
    "V2 key": ((Q, K.to("meta"), V), ["device", "meta", "cpu"]),
    "V2 value": ((Q, K, V.to("meta")), ["device", "meta", "cpu"]),
    **{f"V3 {name}": ((*keys_for(name), build("meta")), ["device", "meta", "cpu"]) for name, build in PACKED.items()},
    "V3 tensor": ((Q, K, V, torch.zeros(2, 3, 5, 7, device="meta")), ["device", "meta", "cpu"]),
    "V4 key": ((Q, K.half(), V), ["dtype", "fp32", "fp16"]),
    "V4 value": ((Q, K, V.double()), ["dtype", "fp32", "fp64"]),
    "V4 one quantised": ((Q, K.int(), V), ["dtype", "fp32", "int32"]),
    "V4 bias": ((Q, K, V, torch.zeros(2, 3, 5, 7).half()), ["dtype", "fp32", "fp16"]),
    **{f"V5 {name}": ((*(x[:1] for x in THREE), build()), [name]) for name, build in PACKED.items()},
    "V5 bottom right": ((*THREE, ab.LowerTriangularFromBottomRightMask()), ["LowerTriangularFromBottomRightMask"]),
    "V5 local": ((*THREE, ab.LocalAttentionFromBottomRightMask(1, 1)), ["LocalAttentionFromBottomRightMask"]),
    "V5 causal with a tensor": (
        (*THREE, ab.LowerTriangularMaskWithTensorBias(torch.zeros(2, 5, 7))),
        ["LowerTriangularMaskWithTensorBias"],
    ),
    "V6 batch": ((Q, K, V, torch.zeros(1, 3, 5, 7)), ["[1, 3, 5, 7]", "[2, 3, 5, 7]"]),
    "V6 heads": ((Q, K, V, torch.zeros(2, 1, 5, 7)), ["[2, 1, 5, 7]", "[2, 3, 5, 7]"]),
    "V6 no heads": ((Q, K, V, torch.zeros(2, 5, 7)), ["[2, 5, 7]", "[2, 3, 5, 7]"]),
    "V6 queries": ((Q, K, V, torch.zeros(2, 3, 1, 7)), ["[2, 3, 1, 7]", "[2, 3, 5, 7]"]),
    "V6 keys": ((Q, K, V, torch.zeros(2, 3, 5, 8)), ["[2, 3, 5, 8]", "[2, 3, 5, 7]"]),
    "V6 causal": (
        (Q, K, V, ab.LowerTriangularMaskWithTensorBias(torch.zeros(1, 3, 5, 7))),
        ["[1, 3, 5, 7]", "[2, 3, 5, 7]"],
    ),
    "V6 3-D": ((*THREE, torch.zeros(1, 5, 7)), ["[1, 5, 7]", "[2, 5, 7]"]),
    "V6 5-D": ((*FIVE, torch.zeros(2, 3, 5, 7)), ["[2, 3, 5, 7]", "[2, 1, 3, 5, 7]"]),
    "V6 boolean": ((Q, K, V, torch.ones(5, 7, dtype=torch.bool)), ["[5, 7]", "[2, 3, 5, 7]"]),
    **{f"V7 {name}": ((Q, K, V, build()), ["batch", "1"]) for name, build in PACKED.items()},
    "V9 batch": ((Q, K[:1], V[:1]), ["batch", "expand"]),
    "V9 heads": ((Q, K[:, :, :1], V[:, :, :1]), ["heads", "expand"]),
    "V9 groups": ((FIVE[0].expand(-1, -1, 2, -1, -1), *FIVE[1:]), ["groups", "expand"]),
    "V9 keys": ((Q, K, V[:, :6]), ["6", "7"]),
    "V9 head_dim": ((Q, K[..., :8], V), ["head_dim", "8", "16"]),
}


def entry_points():
    for name in (
        "memory_efficient_attention",
        "memory_efficient_attention_forward",
        "memory_efficient_attention_forward_requires_grad",
        "memory_efficient_attention_partial",
    ):
        yield pytest.param(getattr(fmha, name), id=name.removeprefix("memory_efficient_"))


@pytest.mark.parametrize("op", [None, "cutlass"])
@pytest.mark.parametrize("entry", list(entry_points()))
@pytest.mark.parametrize("name", CASES)
def test_rule(name, entry, op):
    inputs, facts = CASES[name]
    options = {"op": getattr(fmha, op).FwOp} if op else {}
    if op and entry is fmha.memory_efficient_attention:
        options = {"op": (fmha.cutlass.FwOp, fmha.cutlass.BwOp)}
    for requires_grad in (False, True):
        args = [
            x.detach().requires_grad_()
            if requires_grad and torch.is_tensor(x) and x.is_floating_point() and i < 3
            else x
            for i, x in enumerate(inputs)
        ]
        with pytest.raises(ValueError) as error:
            entry(*args, **options)
        for fact in facts:
            assert fact in str(error.value), f"{fact!r} not in: {error.value}"


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("op", [None, "cutlass"])
def test_v8(p, op):
    ops = getattr(fmha, op) if op else None
    for requires_grad in (False, True):
        args = [x.detach().requires_grad_(requires_grad) for x in (Q, K, V)]
        with pytest.raises(ValueError, match=f"{p}"):
            fmha.memory_efficient_attention(*args, p=p, op=(ops.FwOp, ops.BwOp) if op else None)
        with pytest.raises(ValueError, match=f"{p}"):
            fmha.memory_efficient_attention_forward(*args, p=p, op=ops.FwOp if op else None)


@pytest.mark.parametrize("name", CASES)
def test_rules_of_the_structure(name):
    """`Inputs.validate_inputs` knows the rules too; it needs no operator."""
    inputs, _ = CASES[name]
    with pytest.raises(ValueError):
        fmha.Inputs(*inputs).validate_inputs()


def test_v8_of_the_structure():
    for p in (-0.1, 1.5):
        with pytest.raises(ValueError, match=str(p)):
            fmha.Inputs(Q, K, V, p=p).validate_inputs()
    fmha.Inputs(Q, K, V, p=0.5).validate_inputs()


def test_after_a_refusal_everything_still_works():
    """0.0.16: bad inputs are refused by checks, not by a kernel that fails and leaves things broken."""
    for inputs, _ in CASES.values():
        with pytest.raises(ValueError):
            fmha.memory_efficient_attention(*inputs)
        assert fmha.memory_efficient_attention(Q, K, V).isfinite().all()
