"""TimmSparseAttention against the formula of timm's attention, with every kind of mask."""

import copy
import pickle

import mechanisms_reference as reference
import pytest
import torch
from devices import on_each_device  # noqa: F401
from xformers.components.attention import AttentionMask
from xformers.helpers.timm_sparse_attention import TimmSparseAttention

import xformers  # noqa: F401

BATCH, SEQLEN, DIM, HEADS = 2, 9, 12, 3


def formula(module, x, keep=None):
    w = {name: t.detach().cpu() for name, t in module.state_dict().items()}
    qkv = torch.nn.functional.linear(x.cpu(), w["qkv.weight"], w.get("qkv.bias"))
    q, k, v = qkv.view(BATCH, SEQLEN, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    out = reference.softmax_attention(q, k, v, keep).transpose(1, 2).flatten(2)
    return torch.nn.functional.linear(out, w["proj.weight"], w["proj.bias"])


@pytest.mark.parametrize("kind", ["none", "bool", "float", "wrapped", "causal", "at the call", "is_causal"])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_against_the_formula(kind, qkv_bias):
    torch.manual_seed(0)
    keep = reference.triangle(SEQLEN, SEQLEN)
    on_device = keep.to(torch.get_default_device())
    masks = {
        "bool": on_device,
        "float": torch.zeros(SEQLEN, SEQLEN).masked_fill(~on_device, -torch.inf),
        "wrapped": AttentionMask.from_bool(on_device),
        "causal": AttentionMask.make_causal(SEQLEN),
    }
    module = TimmSparseAttention(DIM, HEADS, qkv_bias, attn_mask=masks.get(kind)).double()
    x = torch.randn(BATCH, SEQLEN, DIM, dtype=torch.float64)
    given = {"at the call": {"attn_mask": on_device}, "is_causal": {"is_causal": True}}.get(kind, {})
    out = module(x, **given)
    assert torch.allclose(out.cpu(), formula(module, x, None if kind == "none" else keep), atol=1e-12)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x, **given), out)


def test_dropout_and_names():
    module, x = TimmSparseAttention(DIM, HEADS, attn_drop=0.5), torch.randn(BATCH, SEQLEN, DIM)
    assert not torch.equal(module(x), module(x)) and torch.equal(module.eval()(x), module(x))
    assert list(module.state_dict()) == ["qkv.weight", "proj.weight", "proj.bias"]
    with pytest.raises(AssertionError, match="dim is 12, expected a multiple of num_heads = 5"):
        TimmSparseAttention(DIM, 5)
