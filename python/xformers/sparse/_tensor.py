"""What the sparse tensor classes share: a wrapper around dense values, which autograd sees, and their places.

A class gives its functions in a table, `_functions`; what is neither there nor a question about shape, dtype or device
is a NotImplementedError that names the function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TypeVar

import torch

Self = TypeVar("Self", bound="SparseTensor")
Function = Callable[..., Any]

# Answered by the wrapper itself.
_QUESTIONS = {
    torch.is_complex,
    torch.is_floating_point,
    torch.is_same_size,
    torch.is_tensor,
    torch.numel,
    torch.Tensor.__format__,
    torch.Tensor.__hash__,
    torch.Tensor.__len__,
    torch.Tensor._is_view,
    torch.Tensor.is_conj,
    torch.Tensor.is_contiguous,
    torch.Tensor.is_inference,
    torch.Tensor.is_neg,
    torch.Tensor.stride,
    torch.Tensor.storage_offset,
    torch.Tensor.untyped_storage,
    torch.Tensor.dim,
    torch.Tensor.get_device,
    torch.Tensor.is_complex,
    torch.Tensor.is_floating_point,
    torch.Tensor.is_same_size,
    torch.Tensor.is_signed,
    torch.Tensor.ndimension,
    torch.Tensor.nelement,
    torch.Tensor.numel,
    torch.Tensor.size,
}
_ATTRIBUTES = set(
    "_base _version device dtype is_cpu is_cuda is_meta is_mkldnn is_mps is_nested is_quantized is_sparse "
    "is_sparse_csr is_xla is_xpu itemsize layout ndim names retains_grad shape".split()
)
for _attribute in _ATTRIBUTES:
    _QUESTIONS.add(getattr(torch.Tensor, _attribute).__get__)

_DTYPES = {
    torch.Tensor.bfloat16: torch.bfloat16,
    torch.Tensor.bool: torch.bool,
    torch.Tensor.double: torch.float64,
    torch.Tensor.float: torch.float32,
    torch.Tensor.half: torch.float16,
}


def _name_of(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", repr(function))
    return getattr(owner, "__name__", name) if name in ("__get__", "__set__") else name


class SparseTensor(torch.Tensor):
    """Values in a dense tensor, and their places. `torch.Tensor` in name: metadata without memory of its own."""

    _stored: torch.Tensor
    _parts: ClassVar[tuple[str, ...]] = ()  # attributes that say where the values lie: tensors, or None
    _functions: ClassVar[dict[Any, Function]] = {}

    @staticmethod
    def _empty(cls: type[Self], shape: Any, values: torch.Tensor) -> Self:
        tensor: Self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=values.dtype, device=values.device)
        tensor._stored = values
        return tensor

    def with_values(self: Self, values: torch.Tensor, shape: Any = None) -> Self:
        """Other values in the same places; nothing is checked or copied. Differentiable in the values."""
        tensor = self._empty(type(self), self.shape if shape is None else shape, values)
        for part in self._parts:
            setattr(tensor, part, getattr(self, part))
        return tensor

    def _map(self: Self, values: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Other values, and each tensor of places changed."""
        tensor = self._empty(type(self), self.shape, values)
        for part in self._parts:
            places = getattr(self, part)
            setattr(tensor, part, None if places is None else change(places))
        return tensor

    def values(self) -> torch.Tensor:
        """The stored values: the tensor that autograd knows."""
        return self._stored

    # ---- torch.compile: a wrapper around tensors, whose functions are steps of the graph ----
    def __tensor_flatten__(self) -> tuple[list[str], tuple[str, ...]]:
        if self._stored.requires_grad and type(self._stored) is torch.Tensor and torch.is_grad_enabled():
            raise NotImplementedError(  # the gradient would silently be None
                f"{type(self).__name__}: its values require a gradient, expected none of what a compiled function "
                "takes.  Fix: pass the values as a tensor of their own, and use mask.with_values(values) inside."
            )
        parts = [part for part in self._parts if getattr(self, part) is not None]
        return ["_stored", *parts], ()

    @classmethod
    def __tensor_unflatten__(
        cls: type[Self], tensors: dict[str, torch.Tensor], context: Any, size: Any, _: Any
    ) -> Self:
        tensor = cls._empty(cls, size, tensors["_stored"])
        for part in cls._parts:
            setattr(tensor, part, tensors.get(part))
        return tensor

    def _same_places(self, other: Any) -> bool:
        """Of another tensor of this class and shape."""
        raise NotImplementedError

    # ---- what PyTorch asks ----
    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        function = cls._functions.get(func) or _SHARED.get(func)
        if function is not None:
            return function(*args, **kwargs)
        if func in _DTYPES:
            return moved(args[0], _DTYPES[func])
        if func in _QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        raise cls._unsupported(_name_of(func))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> NoReturn:
        raise cls._unsupported(func.__name__)

    @classmethod
    def _unsupported(cls, name: str) -> NotImplementedError:
        return NotImplementedError(
            f"{cls.__name__}: {name} is not supported.  Fix: use values() or to_dense() (docs/ops/sparse-tensors.md)."
        )

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        if id(self) in memo:
            found: Self = memo[id(self)]
            return found
        values = copy.deepcopy(self._stored, memo)  # refuses what is not a leaf, as of any tensor
        memo[id(self)] = self._map(values, torch.clone)
        return self.__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = {part: getattr(self, part) for part in self._parts}
        return _rebuild, (type(self), tuple(self.shape), self._stored, parts)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Asks autograd for the gradient of the values."""
        self._stored.requires_grad_(requires_grad)
        return self


def _rebuild(cls: type[Self], shape: tuple[int, ...], values: torch.Tensor, parts: dict[str, Any]) -> Self:
    tensor = cls._empty(cls, shape, values)
    for part, value in parts.items():
        setattr(tensor, part, value)
    return tensor


def same_part(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two descriptions of places say the same; the same objects do without a look."""
    return a is b or (a.device == b.device and torch.equal(a, b))


def moved(tensor: Self, *args: Any, **kwargs: Any) -> Self:
    copied = kwargs.pop("copy", False)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    values = tensor._stored.to(device or tensor.device, dtype or tensor.dtype, non_blocking, copied)
    if values is tensor._stored:
        return tensor
    return tensor._map(values, lambda part: part.to(values.device, non_blocking=non_blocking))


def _cuda(tensor: Self, device: Any = None, non_blocking: bool = False, **_: Any) -> Self:
    return moved(tensor, torch.device("cuda" if device is None else device), non_blocking=non_blocking)


def _detach(tensor: Self) -> Self:
    return tensor.with_values(tensor._stored.detach())


def _clone(tensor: Self, **_: Any) -> Self:
    return tensor.with_values(tensor._stored.clone())


def _grad(tensor: Self) -> Self | None:
    gradient = tensor._stored.grad
    return None if gradient is None else tensor.with_values(gradient)


def _set_grad(tensor: SparseTensor, gradient: Any) -> None:
    tensor._stored.grad = gradient._stored if isinstance(gradient, SparseTensor) else gradient


def _set_requires_grad(tensor: SparseTensor, requires_grad: bool) -> None:
    tensor._stored.requires_grad = requires_grad


def _dropout(input: Self, p: float = 0.5, training: bool = True, inplace: bool = False) -> Self:  # noqa: A002
    return input.with_values(torch.nn.functional.dropout(input._stored, p, training, inplace))


def _equal(a: Any, b: Any) -> bool:
    """Shape, values and places."""
    if type(a) is not type(b) or a.shape != b.shape or a._stored.shape != b._stored.shape:
        return False
    return torch.equal(a._stored, b._stored) and a._same_places(b)


def _copy(tensor: Self, source: Any, non_blocking: bool = False) -> Self:
    """Values and places of the source, of any number, into this object."""
    if type(source) is not type(tensor) or source.shape != tensor.shape:
        raise ValueError(
            f"{type(tensor).__name__}: copy_ from {type(source).__name__} {list(source.shape)}, expected one of "
            f"{list(tensor.shape)}.  Fix: make a sparse tensor of that shape first."
        )
    with torch.no_grad():
        if source._stored.shape == tensor._stored.shape:
            tensor._stored.copy_(source._stored, non_blocking)
        else:
            tensor._stored.data = source._stored.detach().to(tensor._stored, copy=True)
    for part in tensor._parts:
        places = getattr(source, part)
        setattr(tensor, part, None if places is None else places.to(tensor.device, copy=True))
    return tensor


def _listed(tensors: Any) -> list[Any]:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _autograd_grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """torch.autograd.grad over the values; the gradient of a sparse tensor is one."""

    def plain(tensors: Any) -> list[Any]:
        return [tensor._stored if isinstance(tensor, SparseTensor) else tensor for tensor in _listed(tensors)]

    given = None if grad_outputs is None else plain(grad_outputs)
    gradients = torch.autograd.grad(plain(outputs), plain(inputs), given, *args, **kwargs)
    return tuple(
        tensor.with_values(gradient) if isinstance(tensor, SparseTensor) and gradient is not None else gradient
        for tensor, gradient in zip(_listed(inputs), gradients, strict=True)
    )


_of_tensors: Any = torch.Tensor
_SHARED: dict[Any, Function] = {
    torch.autograd.grad: _autograd_grad,
    torch.clone: _clone,
    torch.equal: _equal,
    torch.nn.functional.dropout: _dropout,
    torch.Tensor.clone: _clone,
    torch.Tensor.contiguous: lambda tensor, **_: tensor,
    torch.Tensor.copy_: _copy,
    torch.Tensor.cpu: lambda tensor, **_: moved(tensor, "cpu"),
    torch.Tensor.cuda: _cuda,
    torch.Tensor.detach: _detach,
    torch.Tensor.equal: _equal,
    _of_tensors.grad.__get__: _grad,
    _of_tensors.grad.__set__: _set_grad,
    _of_tensors.grad_fn.__get__: lambda tensor: tensor._stored.grad_fn,
    _of_tensors.is_leaf.__get__: lambda tensor: tensor._stored.is_leaf,
    _of_tensors.requires_grad.__get__: lambda tensor: tensor._stored.requires_grad,
    _of_tensors.requires_grad.__set__: _set_requires_grad,
    torch.Tensor.to: moved,
}
