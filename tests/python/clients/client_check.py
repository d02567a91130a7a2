"""The call of a client against the formula, in the client's own shapes."""

import torch
from attention_reference import check_attention


def randn(*shape, dtype=torch.float32, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)


def assert_attends(out, query, key, value, seen=None, scale=None):
    """out is attention over query, key and value plus what `seen` adds."""
    assert out.is_contiguous()
    check_attention(lambda *_: out, query.detach(), key.detach(), value.detach(), bias=seen, scale=scale)
