"""Dense matrices to sparse ones, and the gradients of that."""

from typing import Any

import torch

from ..._in_graph import allow_in_graph
from .constants import BACKEND_CUTLASS, BACKEND_DENSE, BACKENDS, GRADIENT_DENSE, GRADIENT_SP24, GRADIENT_STE, GRADIENTS
from .tensor import CLASSES, Sparse24Tensor, apply, dense_like, dense_order, is_transposed, pack, pack_like, unpack

_Tensor = torch.Tensor


def _gradient(grad: _Tensor, ctx: Any) -> _Tensor:
    """Of the dense matrix: by the mode that was asked for."""
    if isinstance(grad, Sparse24Tensor) or ctx.gradient == GRADIENT_STE:
        return grad
    assert grad.dtype == ctx.dtype, f"sparsify24: the gradient is {grad.dtype}, expected {ctx.dtype}"
    (masks,) = ctx.saved_tensors
    if ctx.gradient == GRADIENT_DENSE:
        return torch.ops.xformers.sparse24_apply_dense_output(dense_order(grad), masks)
    return pack(grad, masks, ctx.backend)


def _sparsify(x: _Tensor, algo: str, backend: str) -> Sparse24Tensor:
    parts = torch.ops.xformers.sparse24_sparsify_both_ways(x, algo, backend)
    return CLASSES[backend](x.shape, *parts)


class _Sparsify24(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: _Tensor, algo: str, gradient: str, backend: str) -> _Tensor:
        out = _sparsify(x, algo, backend)
        ctx.save_for_backward(out.threads_masks)
        ctx.gradient, ctx.backend, ctx.dtype = gradient, backend, out.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: _Tensor) -> tuple[_Tensor | None, ...]:
        return _gradient(grad, ctx), None, None, None


class _Sparsify24STE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: _Tensor, algo: str, backend: str, bw_mul0: float, bw_mul1: float) -> _Tensor:
        out = _sparsify(x, algo, backend)
        ctx.save_for_backward(out.threads_masks)
        ctx.factors = (bw_mul0, bw_mul1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: _Tensor) -> tuple[_Tensor | None, ...]:
        if ctx.factors != (1.0, 1.0) and not isinstance(grad, Sparse24Tensor):
            (masks,) = ctx.saved_tensors
            grad = torch.ops.xformers.sparse24_apply_dense_output(dense_order(grad), masks, *ctx.factors)
        return grad, None, None, None, None


class _Sparsify24Like(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: _Tensor, pattern: Sparse24Tensor, gradient: str, backend: str, out_dense: bool) -> _Tensor:
        out: _Tensor
        if out_dense:
            out = dense_like(x, pattern)
        else:
            out = pack_like(x, pattern, backend)
        ctx.save_for_backward(pattern.threads_masks)
        ctx.gradient, ctx.backend, ctx.dtype = gradient, backend, out.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: _Tensor) -> tuple[_Tensor | None, ...]:
        return _gradient(grad, ctx), None, None, None, None


class _Sparsify24Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: _Tensor, x2: _Tensor | None, activation: str, algo: str, gradient: str, backend: str
    ) -> _Tensor:
        parts = torch.ops.xformers.sparse24_activation(x, activation, x2, algo, backend)
        out = CLASSES[backend](x.shape, *parts)
        ctx.save_for_backward(x, *(() if x2 is None else (x2,)), out.threads_masks)
        ctx.activation, ctx.gradient, ctx.backend = activation, gradient, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad: _Tensor) -> tuple[_Tensor | None, ...]:
        x, *rest, masks = ctx.saved_tensors
        if isinstance(grad, Sparse24Tensor):
            grad = unpack(grad)
        grads = torch.ops.xformers.sparse24_activation_backward(grad, x, masks, ctx.activation, *rest)
        if ctx.gradient == GRADIENT_SP24:
            grads = [pack(g, masks, ctx.backend) if g.dim() == 2 else g for g in grads]
        return grads[0], grads[1] if rest else None, None, None, None, None


def check_names(where: str, gradient: str, backend: str) -> None:
    if gradient not in GRADIENTS:
        raise ValueError(
            f'{where}: gradient is "{gradient}", expected one of ' + ", ".join(f'"{g}"' for g in GRADIENTS) + "."
        )
    assert backend in BACKENDS, f'{where}: backend is "{backend}", expected "cutlass" or "cusparselt"'


def _autocast(x: _Tensor) -> _Tensor:
    """In the dtype of the autocast that is in force, so that the cast has its own gradient."""
    device = x.device.type
    if (
        device in ("cpu", "cuda")
        and torch.is_autocast_enabled(device)
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    ):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _already_sparse(x: Sparse24Tensor) -> Sparse24Tensor:
    if x.threads_masks is None:
        raise ValueError("sparsify24: x is sparse without a mask, expected a dense matrix or one made by sparsify24.")
    return x


@allow_in_graph
def sparsify24(x: _Tensor, algo: str = "", gradient: str = GRADIENT_SP24, backend: str = BACKEND_CUTLASS) -> _Tensor:
    """x [rows, cols] with at most two of four kept, in every row and column: a `Sparse24Tensor`. Differentiable.

    algo: which are kept of every 4 x 4 tile. "largest_values_greedy" ("", the default) and
    "largest_abs_values_greedy" go from the largest down; "causal1122" goes row by row from the top, with room for 1,
    1, 2 and 2, so that no row depends on a later one. gradient: what x's becomes. "24sparse": a Sparse24Tensor under
    the same mask; "24dense": dense, zero where x was dropped; "ste": unchanged. (Under torch.compile a "24sparse"
    gradient must meet a product before it leaves the graph.) backend: "cutlass" takes any size, "cusparselt"
    multiples of 128, and a bias in linear.

    ValueError for another gradient, AssertionError for another backend, RuntimeError for another algorithm or an x
    that is not a matrix with unit column stride.
    """
    check_names("sparsify24", gradient, backend)
    if isinstance(x, Sparse24Tensor):
        return _already_sparse(x)
    out: _Tensor = apply(_Sparsify24, _autocast(x), algo, gradient, backend)
    return out


@allow_in_graph
def sparsify24_ste(
    x: _Tensor, algo: str = "", backend: str = BACKEND_CUTLASS, bw_mul0: float = 1.0, bw_mul1: float = 1.0
) -> _Tensor:
    """`sparsify24` whose gradient passes through: times bw_mul1 where x was kept, bw_mul0 where it was dropped."""
    check_names("sparsify24_ste", GRADIENT_STE, backend)
    if isinstance(x, Sparse24Tensor):
        if (bw_mul0, bw_mul1) != (1.0, 1.0):
            raise ValueError("sparsify24_ste: x is sparse, expected a dense matrix where the gradient is scaled.")
        return _already_sparse(x)
    out: _Tensor = apply(_Sparsify24STE, _autocast(x), algo, backend, bw_mul0, bw_mul1)
    return out


@allow_in_graph
def sparsify24_like(
    x: _Tensor, pattern: _Tensor, gradient: str = GRADIENT_SP24, backend: str = "", out_dense: bool | None = None
) -> _Tensor:
    """x under the mask of a `Sparse24Tensor` of its shape. Differentiable in x, by `gradient` as in `sparsify24`.

    backend: "" is the pattern's; "dense", or out_dense=True, gives a dense matrix with zeros. ValueError where the
    pattern is not sparse, has another shape, or gradient is none of its names.
    """
    if not isinstance(pattern, Sparse24Tensor):
        raise ValueError(
            f"sparsify24_like: pattern is a {type(pattern).__name__}, expected a Sparse24Tensor.  "
            "Fix: make it by sparsify24."
        )
    if isinstance(x, Sparse24Tensor):
        raise ValueError("sparsify24_like: x is sparse, expected a dense matrix.  Fix: use to_dense().")
    dense = out_dense or backend == BACKEND_DENSE
    backend = pattern.BACKEND if backend in ("", BACKEND_DENSE) else backend
    check_names("sparsify24_like", gradient, backend)
    if pattern.threads_masks is None or x.shape != pattern.shape:
        raise ValueError(
            f"sparsify24_like: x is {list(x.shape)}, expected the shape of the pattern, {list(pattern.shape)}, "
            "with its mask."
        )
    if is_transposed(pattern):
        return sparsify24_like(x.t(), pattern.t(), gradient, backend, bool(dense)).t()
    out: _Tensor = apply(_Sparsify24Like, _autocast(x), pattern, gradient, backend, bool(dense))
    return out


@allow_in_graph
def sparsify24_activation(
    x: _Tensor,
    activation: str,
    x2: _Tensor | None = None,
    algo: str = "",
    gradient: str = GRADIENT_DENSE,
    backend: str = BACKEND_CUTLASS,
) -> _Tensor:
    """`sparsify24` of activation(x) in one pass over x, in fp32 with one rounding. Differentiable in x and x2.

    activation: "relu", "squared_relu", "gelu" (in its tanh form), "gelu_exact"; with an x2 "swiglu", silu(x) * x2.
    The gradient is zero where the activation was dropped: dense ("24dense"), or sparse ("24sparse").
    """
    check_names("sparsify24_activation", gradient, backend)
    if gradient == GRADIENT_STE:
        raise ValueError('sparsify24_activation: gradient is "ste", expected "24dense" or "24sparse".')
    out: _Tensor = apply(
        _Sparsify24Activation, _autocast(x), None if x2 is None else _autocast(x2), activation, algo, gradient, backend
    )
    return out
