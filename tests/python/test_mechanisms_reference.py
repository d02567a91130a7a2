"""The formulas make what they add on the device of their inputs, so that benchmarks can run them on any."""

import mechanisms_reference as plain
import pytest
import torch

X = torch.empty(2, 16, 8, device="meta")
FORMULAS = {
    "scaled_dot_product": lambda: plain.scaled_dot_product(X, X, X, causal=True),
    "local": lambda: plain.local(X, X, X, 3),
    "nystrom": lambda: plain.nystrom(X, X, X, 4, causal=True),
    "nystrom, few tokens": lambda: plain.nystrom(X, X, X, 32, causal=True),
    "orthoformer": lambda: plain.orthoformer(X, X, X, X[:, :3]),
    "fourier_mix": lambda: plain.fourier_mix(X),
    "lambda": lambda: plain.lambda_layer(X, X, X, torch.empty(31, 8, device="meta")),
    "pooling": lambda: plain.pooling(X, 3),
    "favor": lambda: plain.favor(X, X, X, torch.empty(8, 4, device="meta"), True, causal=True),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_device(name):
    out = FORMULAS[name]()
    assert out.device.type == "meta" and out.shape == X.shape
