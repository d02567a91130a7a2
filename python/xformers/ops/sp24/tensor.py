"""The tensor class: a packed matrix and its transpose, and the table of what PyTorch's operators do with it."""

from collections.abc import Callable
from typing import Any

import torch

from .constants import BACKEND_CUSPARSELT, BACKEND_CUTLASS

_Tensor = torch.Tensor


def apply(function: Any, *args: Any) -> _Tensor:
    return function.apply(*args)


class Sparse24Tensor(torch.Tensor):
    """A matrix [rows, cols] and its transpose, packed, with the mask of what is kept.

    packed, meta, packed_t, meta_t, threads_masks: as `torch.ops.xformers.sparse24_sparsify_both_ways` gives them;
    layouts are those of the subclass. Made by `sparsify24`; the functions that it takes are in the subclass's
    `SPARSE24_DISPATCH`, others are a NotImplementedError that names them.
    """

    packed: _Tensor
    meta: _Tensor
    packed_t: _Tensor
    meta_t: _Tensor
    threads_masks: _Tensor

    __slots__ = ["packed", "meta", "packed_t", "meta_t", "threads_masks"]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    BACKEND: str
    SPARSE24_DISPATCH: dict[Any, Callable[..., Any]]

    @staticmethod
    def __new__(
        cls: type["Sparse24Tensor"],
        shape: tuple[int, ...] | torch.Size,
        packed: _Tensor,
        meta: _Tensor,
        packed_t: _Tensor,
        meta_t: _Tensor,
        threads_masks: _Tensor,
        *,
        requires_grad: bool = False,
    ) -> "Sparse24Tensor":
        # A transposed one says so by its strides, too: the gradients of products then come contiguous.
        transposed = threads_masks is not None and not threads_masks.is_contiguous()
        tensor: Sparse24Tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            shape,
            strides=(1, shape[0]) if transposed else (shape[1], 1),
            device=packed.device,
            dtype=packed.dtype,
            requires_grad=requires_grad,
        )
        tensor.packed, tensor.meta, tensor.packed_t, tensor.meta_t = packed, meta, packed_t, meta_t
        tensor.threads_masks = threads_masks
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={tuple(self.shape)})"

    def __tensor_flatten__(self) -> tuple[list[str], tuple[torch.Size, bool]]:
        slots = [slot for slot in Sparse24Tensor.__slots__ if getattr(self, slot) is not None]
        return slots, (self.shape, self.requires_grad)

    @classmethod
    def __tensor_unflatten__(
        cls, inner_tensors: dict[str, _Tensor], meta: tuple[torch.Size, bool], outer_size: Any, outer_stride: Any
    ) -> "Sparse24Tensor":
        shape, requires_grad = meta
        parts = [inner_tensors.get(slot) for slot in Sparse24Tensor.__slots__]
        return cls(shape if outer_size is None else outer_size, *parts, requires_grad=requires_grad)  # type: ignore[arg-type]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = cls.SPARSE24_DISPATCH.get(func._overloadpacket)
        if handler is None:
            raise NotImplementedError(
                f"{cls.__name__}: {func} is not supported.  Fix: use to_dense(), or one of "
                + ", ".join(sorted({str(packet).split(".")[-1] for packet in cls.SPARSE24_DISPATCH}))
                + "."
            )
        return handler(func, args, kwargs or {})

    def to_dense(self, dtype: torch.dtype | None = None, *, masked_grad: bool | None = None) -> _Tensor:
        """The dense matrix, zeros where nothing was kept. Differentiable."""
        dense: _Tensor = apply(_ToDense, self)
        return dense if dtype is None else dense.to(dtype)

    def _sp24_to_dense(self) -> _Tensor:
        return self.to_dense()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sparse24Tensor":
        if not self.is_leaf:
            raise RuntimeError("deepcopy: only leaves of the graph can be copied.  Fix: detach() it first.")
        copy = _like(self, *(getattr(self, slot).clone() for slot in Sparse24Tensor.__slots__[:4]), clone_mask=True)
        copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = tuple(getattr(self, slot) for slot in Sparse24Tensor.__slots__)
        return _rebuild, (type(self), tuple(self.shape), parts, self.requires_grad)


def _rebuild(
    cls: type[Sparse24Tensor], shape: tuple[int, ...], parts: tuple[_Tensor, ...], requires_grad: bool
) -> Sparse24Tensor:
    return cls(shape, *parts, requires_grad=requires_grad)


def _like(
    like: Sparse24Tensor,
    packed: _Tensor,
    meta: _Tensor,
    packed_t: _Tensor,
    meta_t: _Tensor,
    *,
    clone_mask: bool = False,
) -> Sparse24Tensor:
    masks = like.threads_masks
    if clone_mask:
        masks = masks.clone(memory_format=torch.preserve_format)
    return type(like)(like.shape, packed, meta, packed_t, meta_t, masks)


def is_transposed(x: Sparse24Tensor) -> bool:
    return x.threads_masks is not None and not x.threads_masks.is_contiguous()


def unpack(x: Sparse24Tensor) -> _Tensor:
    return torch.ops.xformers.sparse24_unpack(x.packed, x.meta, *x.shape, x.BACKEND)


class _ToDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Sparse24Tensor) -> _Tensor:
        return unpack(x)

    @staticmethod
    def backward(ctx: Any, grad: _Tensor) -> _Tensor:
        return grad


# ---- products ----
def _product(
    sparse: Sparse24Tensor, dense: _Tensor, bias: _Tensor | None = None, *, transpose: bool, bias_per_row: bool = True
) -> _Tensor:
    """sparse @ dense (+ bias), or its transpose."""
    return torch.ops.xformers.sparse24_product(
        sparse.packed,
        sparse.meta,
        dense,
        *sparse.shape,
        bias,
        bias_per_row,
        transpose,
        sparse.BACKEND,
    )


def _check_product(name: str, a: _Tensor, b: _Tensor) -> None:
    cls = type(a if isinstance(a, Sparse24Tensor) else b).__name__
    if isinstance(a, Sparse24Tensor) and isinstance(b, Sparse24Tensor):
        raise ValueError(
            f"{cls} {name}: both operands are sparse, which is not supported by the hardware.  "
            "Fix: make one of them dense, with to_dense()."
        )
    if a.dim() != 2 or b.dim() != 2:
        raise NotImplementedError(
            f"{cls} {name}: the operands are {list(a.shape)} and {list(b.shape)}, expected two matrices.  "
            "Fix: flatten the leading dimensions, and give a vector a second one."
        )
    if a.shape[1] != b.shape[0]:
        raise NotImplementedError(
            f"{cls} {name}: the operands are {list(a.shape)} and {list(b.shape)}, expected as many columns as rows."
        )


def _check_dtype(name: str, cls: str, dense: _Tensor, sparse: _Tensor, what: str = "dense matrix") -> None:
    if dense.dtype != sparse.dtype:
        raise NotImplementedError(
            f"{cls} {name}: the {what} is {dense.dtype}, expected the same data type as the sparse matrix, "
            f"{sparse.dtype}.  Fix: convert it."
        )


def _sparse24_mm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Tensor:
    a, b = args
    _check_product("@", a, b)
    if isinstance(a, Sparse24Tensor):
        _check_dtype("@", type(a).__name__, b, a)
        return _product(a, b, transpose=False)
    _check_dtype("@", type(b).__name__, a, b)
    return _product(transposed(b), a.t(), transpose=True)


def _aligned_mm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Tensor:
    """With the vendor's contract: the dense operand's second dimension (of a left one the first) in eights."""
    a, b = args
    _check_product("@", a, b)
    dense, width = (b, b.shape[1]) if isinstance(a, Sparse24Tensor) else (a, a.shape[0])
    _check_aligned(type(a if isinstance(a, Sparse24Tensor) else b).__name__, dense, width)
    return _sparse24_mm(func, args, kwargs)


def _check_aligned(cls: str, dense: _Tensor, width: int) -> None:
    if width % 8 != 0:
        raise NotImplementedError(
            f"{cls} @: the dense matrix is {list(dense.shape)}, its second dimension must be aligned to 8.  "
            'Fix: pad it, or use backend="cutlass".'
        )


def _linear(x: _Tensor, weight: _Tensor, bias: _Tensor | None) -> _Tensor:
    if isinstance(x, Sparse24Tensor):
        _check_product("linear", x, weight.t())
        _check_dtype("linear", type(x).__name__, weight, x)
        return _product(x, weight.t(), bias, transpose=False, bias_per_row=False)
    assert isinstance(weight, Sparse24Tensor)
    flat = x.reshape(-1, x.shape[-1])
    _check_product("linear", flat, transposed(weight))
    _check_dtype("linear", type(weight).__name__, x, weight)
    return _product(weight, flat.t(), bias, transpose=True).view(*x.shape[:-1], weight.shape[0])


def _sparse24_linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Tensor:
    x, weight, bias = (*args, kwargs.get("bias"))[:3] if len(args) < 3 else args
    if bias is not None:
        raise NotImplementedError(
            "Sparse24TensorCutlass linear: a bias is given, expected none.  "
            'Fix: add it behind, or use backend="cusparselt", which has it.'
        )
    return _linear(x, weight, None)


def _biased_linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Tensor:
    x, weight, bias = (*args, kwargs.get("bias"))[:3] if len(args) < 3 else args
    if bias is not None:
        _check_dtype("linear", "Sparse24TensorCuSparseLt", bias, weight, "bias")
    return _linear(x, weight, bias)


def _sparse24_addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Tensor:
    raise NotImplementedError(
        "Sparse24TensorCutlass addmm: a bias is given, expected none.  "
        'Fix: add it behind, or use backend="cusparselt", which has it.'
    )


def _biased_addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Tensor:
    bias, a, b = args
    name = "Sparse24TensorCuSparseLt addmm"
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
        raise NotImplementedError(f"{name}: alpha or beta is given, expected 1.  Fix: scale the operands.")
    if bias.dim() != 1:
        raise NotImplementedError(f"{name}: the bias has {bias.dim()} dimensions, expected 1.  Fix: add it behind.")
    if not isinstance(b, Sparse24Tensor) or isinstance(a, Sparse24Tensor):
        raise NotImplementedError(
            f"{name}: the first matrix is sparse, expected the second one to be.  Fix: add the bias behind the product."
        )
    _check_product("addmm", a, b)
    _check_dtype("addmm", type(b).__name__, a, b)
    _check_dtype("addmm", type(b).__name__, bias, b, "bias")
    return _product(transposed(b), a.t(), bias, transpose=True)


# ---- what leaves values as they are ----
def transposed(x: Sparse24Tensor) -> Sparse24Tensor:
    masks = x.threads_masks
    return type(x)(
        (x.shape[1], x.shape[0]),
        x.packed_t,
        x.meta_t,
        x.packed,
        x.meta,
        masks.transpose(0, 1) if masks is not None else masks,
    )


def _sparse24_t(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sparse24Tensor:
    return transposed(args[0])


def _sparse24_detach(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sparse24Tensor:
    x = args[0]
    return _like(x, x.packed, x.meta, x.packed_t, x.meta_t)


def _sparse24_detach_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sparse24Tensor:
    x: Sparse24Tensor = args[0]
    return x


def _sparse24_is_same_size(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(args[0].shape == args[1].shape)


def _sparse24_view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sparse24Tensor:
    x, shape = args
    if -1 in shape:
        known = 1
        for size in shape:
            known *= size if size != -1 else 1
        shape = [x.numel() // known if size == -1 and known > 0 else size for size in shape]
    if tuple(shape) != tuple(x.shape):
        raise NotImplementedError(
            f"{type(x).__name__}: view is given {list(shape)}, expected its own shape {list(x.shape)}.  "
            "Fix: reshape the dense matrix before it is sparsified."
        )
    return _like(x, x.packed, x.meta, x.packed_t, x.meta_t)


def _sparse24_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sparse24Tensor:
    """clone and to: values in another dtype, everything on another device."""
    x = args[0]
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    values = [v.to(device=device, dtype=dtype, copy=True) for v in (x.packed, x.packed_t)]
    metas = [_strided_copy(m, device) for m in (x.meta, x.meta_t)]
    if x.BACKEND == BACKEND_CUSPARSELT:  # behind the values lies the metadata, whose bits are to stay
        values = [
            torch.cat([v[: x.numel() // 2], m.reshape(-1).view(v.dtype)]) for v, m in zip(values, metas, strict=True)
        ]
    masks = _strided_copy(x.threads_masks, device)
    return type(x)(x.shape, values[0], metas[0], values[1], metas[1], masks)


def _strided_copy(x: _Tensor, device: Any) -> _Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device or x.device).copy_(x)


# ---- pointwise functions ----
def _same_mask(a: Sparse24Tensor, b: Sparse24Tensor) -> bool:
    first, second = a.threads_masks, b.threads_masks
    if first is second:
        return True
    if first is None or second is None or first.shape != second.shape or first.stride() != second.stride():
        return False
    if type(first) is not torch.Tensor or type(second) is not torch.Tensor:
        return True  # traced: they have no memory yet
    return first.data_ptr() == second.data_ptr()


def _pointwise(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dense_allowed: tuple[int, ...] = (), scalars: bool = True
) -> Sparse24Tensor:
    """func on the kept values of both orientations; all operands share one mask, dense ones take it on."""
    pattern = next(a for a in args if isinstance(a, Sparse24Tensor))
    name = str(func._overloadpacket).split(".")[-1]
    packed: list[Any] = []
    packed_t: list[Any] = []
    for i, operand in enumerate(args):
        where = f"Sparse24TensorCutlass {name}: operand {i}"
        if isinstance(operand, torch.Tensor) and not isinstance(operand, Sparse24Tensor):
            if scalars and operand.dim() == 0:
                packed.append(operand)
                packed_t.append(operand)
                continue
            if i not in dense_allowed:
                raise ValueError(f"{where} is dense, expected a sparse one with the same mask.  Fix: sparsify24_like.")
            if operand.shape != pattern.shape:
                raise ValueError(f"{where} is {list(operand.shape)}, expected {list(pattern.shape)}.")
            operand = pack_like(operand, pattern)
        if isinstance(operand, Sparse24Tensor):
            if not _same_mask(operand, pattern):
                raise ValueError(f"{where} has another mask, expected the same one.  Fix: make it by sparsify24_like.")
            packed.append(operand.packed)
            packed_t.append(operand.packed_t)
        else:
            if not scalars and i < 2:
                raise ValueError(f"{where} is {operand}, expected a sparse matrix: a number would fill dropped places.")
            packed.append(operand)
            packed_t.append(operand)
    return _like(pattern, func(*packed, **kwargs), pattern.meta, func(*packed_t, **kwargs), pattern.meta_t)


def _pointwise_of(dense_allowed: tuple[int, ...] = (), scalars: bool = True) -> Callable[..., Sparse24Tensor]:
    def handler(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sparse24Tensor:
        return _pointwise(func, args, kwargs, dense_allowed, scalars)

    return handler


_aten = torch.ops.aten
_COMMON: dict[Any, Callable[..., Any]] = {
    _aten.detach: _sparse24_detach,
    _aten.detach_: _sparse24_detach_,
    _aten.alias: _sparse24_detach,
    _aten.is_same_size: _sparse24_is_same_size,
    _aten.t: _sparse24_t,
    _aten.view: _sparse24_view,
    _aten._unsafe_view: _sparse24_view,
    _aten.clone: _sparse24_copy,
    _aten._to_copy: _sparse24_copy,
}

# What `Sparse24Tensor` of either layout does in place of PyTorch's operators: functions by operator.
SPARSE24_DISPATCH_CUTLASS: dict[Any, Callable[..., Any]] = {
    **_COMMON,
    _aten.mm: _sparse24_mm,
    _aten.matmul: _sparse24_mm,
    _aten.linear: _sparse24_linear,
    _aten.addmm: _sparse24_addmm,
    _aten.relu: _pointwise_of(),
    _aten.gelu: _pointwise_of(),
    _aten.silu: _pointwise_of(),
    _aten.add: _pointwise_of(scalars=False),
    _aten.mul: _pointwise_of(dense_allowed=(0, 1)),
    _aten.gelu_backward: _pointwise_of(dense_allowed=(0,)),
    _aten.silu_backward: _pointwise_of(dense_allowed=(0, 1)),
    _aten.threshold_backward: _pointwise_of(dense_allowed=(0,)),
}

# The same for the other layout.
SPARSE24_DISPATCH_CUSPARSELT: dict[Any, Callable[..., Any]] = {
    **_COMMON,
    _aten.mm: _aligned_mm,
    _aten.matmul: _aligned_mm,
    _aten.linear: _biased_linear,
    _aten.addmm: _biased_addmm,
}


class Sparse24TensorCutlass(Sparse24Tensor):
    """Of any size. packed [rows to 32, (cols to 64) / 2], meta int16 [rows to 32, 2, cols to 64 / 32]."""

    BACKEND = BACKEND_CUTLASS
    SPARSE24_DISPATCH = SPARSE24_DISPATCH_CUTLASS


class Sparse24TensorCuSparseLt(Sparse24Tensor):
    """Of multiples of 128. packed: one buffer, values, then metadata, as meta has it; linear takes a bias."""

    BACKEND = BACKEND_CUSPARSELT
    SPARSE24_DISPATCH = SPARSE24_DISPATCH_CUSPARSELT


CLASSES: dict[str, type[Sparse24Tensor]] = {
    BACKEND_CUTLASS: Sparse24TensorCutlass,
    BACKEND_CUSPARSELT: Sparse24TensorCuSparseLt,
}
torch.serialization.add_safe_globals([_rebuild, Sparse24TensorCutlass, Sparse24TensorCuSparseLt])


def pack(x: _Tensor, masks: _Tensor, backend: str, meta: tuple[_Tensor, _Tensor] | None = None) -> Sparse24Tensor:
    packed, meta_own, packed_t, meta_t_own = torch.ops.xformers.sparse24_apply(x, masks, backend)
    if meta is not None and backend == BACKEND_CUTLASS:
        meta_own, meta_t_own = meta
    return CLASSES[backend](x.shape, packed, meta_own, packed_t, meta_t_own, masks)


def pack_like(x: _Tensor, pattern: Sparse24Tensor, backend: str = "") -> Sparse24Tensor:
    backend = backend or pattern.BACKEND
    if is_transposed(pattern):
        return transposed(pack_like(x.t(), transposed(pattern), backend))
    shared = (pattern.meta, pattern.meta_t) if backend == pattern.BACKEND else None
    return pack(x, pattern.threads_masks, backend, shared)


def dense_like(x: _Tensor, pattern: Sparse24Tensor, mul0: float = 0.0, mul1: float = 1.0) -> _Tensor:
    if is_transposed(pattern):
        return dense_like(x.t(), transposed(pattern), mul0, mul1).t()
    return torch.ops.xformers.sparse24_apply_dense_output(dense_order(x), pattern.threads_masks, mul0, mul1)


def dense_order(x: _Tensor) -> _Tensor:
    return x if 1 in x.stride() else x.contiguous()
