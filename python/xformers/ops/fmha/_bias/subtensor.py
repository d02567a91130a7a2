"""Biases that are tensors to PyTorch: `isinstance(mask, torch.Tensor)`, `.to()`, `.cuda()`, `.dtype`, `.requires_grad`.

Exporters, function transforms and modules wrap tensors anew, and forget their class. So what a mask means travels in
the tensor itself: it holds no elements, whatever is done with it comes to `__torch_dispatch__` below, also from inside
of other wrappers, and attention's operators find out there what it hides. A mask may be moved, cloned, detached and
(with a tensor bias) sliced, and stays what it is; computing with it is refused. docs/design/masks.md says why.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack

from .base import CAUSAL, AttentionBias, LoweredBias, default_device

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AttentionBiasSubTensor", "LowerTriangularMask", "LowerTriangularMaskWithTensorBias"]

aten = torch.ops.aten
_KEEP_CLASS = {
    aten.alias,
    aten.clone,
    aten.detach,
    aten._to_copy,
    aten.empty_like,
    aten.lift_fresh,
    aten.lift_fresh_copy,
    aten._pin_memory,
}
_SLICES = {aten.expand, aten.select, aten.slice, aten.unsqueeze, aten.view}


class AttentionBiasSubTensor(torch.Tensor, AttentionBias):
    """A bias that is a tensor. `_subtensor` is the plain tensor that says device and dtype."""

    _subtensor: torch.Tensor
    _KEEPS = _KEEP_CLASS

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(argument.name == "attn_bias" for argument in func._schema.arguments):
            return _attend(func, args, kwargs)
        mask, packet = args[0] if args else None, func.overloadpacket
        if isinstance(mask, AttentionBiasSubTensor):
            if packet is aten.copy_:
                return mask._load(args[1])
            if packet in mask._KEEPS or (packet is aten.permute and mask._keeps_rows_and_columns(args[1])):
                subtensor = func(mask._subtensor, *args[1:], **kwargs)
                with torch.inference_mode(False):  # a view shares its base's version, which inference tensors lack
                    return _wrap(type(mask), {**mask.__dict__, "_subtensor": subtensor})
        result = func.decompose(*args, **kwargs)  # as `to`, which under inference mode comes here itself
        if result is NotImplemented:
            raise TypeError(
                f"attn_bias: {packet.__name__} is not supported on a {cls.__name__}.  "
                "Fix: compute with a tensor, and make the mask from the result."
            )
        return result

    # How tracers take a mask apart and put it together around stand-ins for its tensor.
    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        return ["_subtensor"], {name: value for name, value in self.__dict__.items() if name != "_subtensor"}

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Any], fields: dict[str, Any], size: Any, stride: Any) -> Self:
        return _wrap(cls, {**fields, **inner})

    def share_memory_(self) -> Self:
        self._subtensor.share_memory_()
        return self

    def _load(self, other: torch.Tensor) -> Self:
        """copy_: the elements of another mask of this class or, with a tensor bias, of a plain tensor of its shape."""
        same = type(other) is type(self)
        if not same and (not self.HOLDS_DENSE_TENSOR or isinstance(other, AttentionBiasSubTensor)):
            raise TypeError(
                f"attn_bias: a {type(other).__name__} is copied into a {type(self).__name__}, expected the same "
                "class.  Fix: make the mask from the tensor."
            )
        if self.HOLDS_DENSE_TENSOR:
            self._subtensor.copy_(other._subtensor if same else other)  # type: ignore[attr-defined]
        return self

    def _keeps_rows_and_columns(self, dims: Sequence[int]) -> bool:
        return self.HOLDS_DENSE_TENSOR and [dim % self.ndim for dim in dims[-2:]] == [self.ndim - 2, self.ndim - 1]

    def __bool__(self) -> bool:
        return True

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return _wrap(type(self), copy.deepcopy(self.__dict__, memo))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _wrap, (type(self), self.__dict__)


def _attend(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operator of attention whose attn_bias is a mask, called with what the mask comes down to."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    mask = given.get("attn_bias")
    if not isinstance(mask, AttentionBiasSubTensor):
        raise TypeError("attention: a mask is query, key or value, expected attn_bias.  Fix: pass it as attn_bias.")
    scores, left, right, bottom_right = mask.lower(given["query"].device)[:4]
    band = (given.get("window_left", -1), given.get("window_right", -1), given.get("bottom_right", False))
    if band not in ((-1, -1, False), (left, right, bottom_right)):
        raise TypeError(f"attention: a {type(mask).__name__} comes with the band {band}, expected none beside its own.")
    scores = mask._subtensor if scores is mask else scores
    given.update(attn_bias=scores, window_left=left, window_right=right, bottom_right=bottom_right)
    if scores is None and given.get("need_bias_grad"):  # of a mask that holds nothing
        results = list(func(**{**given, "need_bias_grad": False}))
        results[[result.name for result in func._schema.returns].index("dbias")] = mask._subtensor.new_zeros(())
        return tuple(results)
    return func(**given)


def _wrap(cls: type[AttentionBiasSubTensor], fields: dict[str, Any]) -> Any:
    """A mask of class `cls`, subclasses included, with these fields."""
    mask = _appearance(cls, fields["_subtensor"])
    for name, value in fields.items():
        setattr(mask, name, value)
    return mask


def _appearance(cls: type[AttentionBiasSubTensor], subtensor: torch.Tensor) -> Any:
    """A tensor without elements that has the shape of the mask, and its gradient."""
    if not cls.HOLDS_DENSE_TENSOR:
        return torch.Tensor._make_wrapper_subclass(cls, (), dtype=subtensor.dtype, device=subtensor.device)
    recorded = subtensor.requires_grad and torch.is_grad_enabled()
    if recorded and type(subtensor) in (torch.Tensor, torch.nn.Parameter) and not _is_transformed(subtensor):
        return _Appear.apply(subtensor, cls)  # type: ignore[no-untyped-call]
    return torch.Tensor._make_wrapper_subclass(
        cls,
        subtensor.shape,
        strides=subtensor.stride(),
        storage_offset=subtensor.storage_offset(),
        dtype=subtensor.dtype,
        device=subtensor.device,
        requires_grad=recorded,
    )


def _is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a transform of torch.func is at work, or has made the tensor."""
    return peek_interpreter_stack() is not None or is_functorch_wrapped_tensor(tensor)


class _Appear(torch.autograd.Function):
    """tensor -> the mask that it is of: gradients of the mask flow to it unchanged."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, cls: type[AttentionBiasSubTensor]) -> Any:
        with torch.no_grad():
            return _appearance(cls, tensor)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad, None


class _Disappear(torch.autograd.Function):
    """mask -> the tensor that it is of: gradients of the tensor flow to the mask."""

    @staticmethod
    def forward(ctx: Any, mask: AttentionBiasSubTensor) -> torch.Tensor:
        return mask._subtensor.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad


class LowerTriangularMask(AttentionBiasSubTensor):
    """Causal: query i sees the keys j <= i. A tensor of no dimensions, whose `_subtensor` is empty."""

    HOLDS_DENSE_TENSOR = False
    _TAKES_3D = True
    _BAND = CAUSAL

    @staticmethod
    def __new__(cls, *, _subtensor: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if _subtensor is None:
            _subtensor = torch.empty((0,), device=default_device())
        return _wrap(cls, {"_subtensor": _subtensor})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def lower(self, device: torch.device) -> LoweredBias:
        return lower_mask(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}()"

    def add_bias(self, bias: torch.Tensor) -> LowerTriangularMaskWithTensorBias:
        """The same, and `bias` added to the scores; gradients flow to it."""
        return LowerTriangularMaskWithTensorBias(bias)


class LowerTriangularMaskWithTensorBias(LowerTriangularMask):
    """Causal, and a tensor [batch, (groups, heads,) seqlen_q, seqlen_k] in the query's dtype added to the scores. It
    has that tensor's shape, dtype, device and gradient."""

    HOLDS_DENSE_TENSOR = True
    _TAKES_3D = False
    _KEEPS = _KEEP_CLASS | _SLICES

    @staticmethod
    def __new__(cls, bias: torch.Tensor, **kwargs: Any) -> Any:
        return _wrap(cls, {"_subtensor": bias})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self._subtensor!r})"

    def add_bias(self, bias: torch.Tensor) -> LowerTriangularMaskWithTensorBias:
        """Refused: NotImplementedError."""
        raise NotImplementedError(
            f"attn_bias: add_bias is called on a {type(self).__name__}, expected a LowerTriangularMask.  "
            "Fix: add both tensors first."
        )


_CAUSAL = LoweredBias(None, *CAUSAL)


def lower_mask(mask: AttentionBiasSubTensor) -> LoweredBias:
    """`lower` of both classes, as a function: Dynamo does not find the methods of a tensor that it has made itself."""
    if not isinstance(mask, LowerTriangularMaskWithTensorBias):
        return _CAUSAL
    scores = mask._subtensor
    if mask.requires_grad:  # gradients reach the mask as well as what it was made of
        if not torch.compiler.is_dynamo_compiling() and not _is_transformed(scores):
            scores = _Disappear.apply(mask)  # type: ignore[no-untyped-call]
        elif not scores.requires_grad:
            scores = mask  # which the operator takes apart
    return LoweredBias(scores, *CAUSAL)


torch.serialization.add_safe_globals([_wrap, LowerTriangularMask, LowerTriangularMaskWithTensorBias])
