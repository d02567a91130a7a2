"""Biases that are tensors to PyTorch: `isinstance(mask, torch.Tensor)`, `.to()`, `.cuda()`, `.dtype`, `.requires_grad`.

They are real tensors, since PyTorch's C code reads whatever claims to be one. A mask may be moved, cloned, detached and
(with a tensor bias) sliced, and stays what it is; computing with it is refused. torch.compile sees the methods below
as ordinary code, and a mask as what its `_operands` gives.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from .base import CAUSAL, AttentionBias, Device, default_device, materialize_band

_KEEP_CLASS = {"clone", "detach", "to", "cuda", "cpu", "_to_copy", "contiguous", "pin_memory"}
_KEEP_CLASS |= {"requires_grad_", "share_memory_"}
_SLICES = {"__getitem__", "select", "slice", "narrow", "unsqueeze", "expand"}


def _changes_in_place(name: str) -> bool:
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__int__", "__index__", "__invert__"))
    return name.endswith("_")


class AttentionBiasSubTensor(torch.Tensor, AttentionBias):
    """A bias that is a tensor. `_subtensor` is the plain tensor that says device and dtype."""

    _subtensor: torch.Tensor
    _KEEPS = _KEEP_CLASS

    @classmethod
    def _carrier(cls, subtensor: torch.Tensor) -> torch.Tensor:
        """The tensor that the mask appears to be."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        mask = args[0] if args and isinstance(args[0], AttentionBiasSubTensor) else None
        if mask is not None and name in mask._KEEPS:
            with torch._C.DisableTorchFunctionSubclass():
                result = func(mask, *args[1:], **(kwargs or {}))
                if result is mask:  # nothing to move
                    return mask
                moved = func(mask._subtensor, *args[1:], **(kwargs or {})) if mask.ndim == 0 else result
            return _wrap(type(mask), {**mask.__dict__, "_subtensor": moved})
        if _changes_in_place(name):
            raise TypeError(f"attn_bias: {name} is not supported on a {cls.__name__}.  Fix: edit the tensor it is of.")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and name != "__get__" and name != "as_subclass":
            raise TypeError(
                f"attn_bias: {name} is not supported on a {cls.__name__}.  "
                "Fix: compute with a tensor, and make the mask from the result."
            )
        return result

    def __bool__(self) -> bool:
        return True

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __deepcopy__(self, memo: dict[int, Any]) -> "AttentionBiasSubTensor":
        return _wrap(type(self), copy.deepcopy(self.__dict__, memo))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _wrap, (type(self), self.__dict__)


def _wrap(cls: type[AttentionBiasSubTensor], fields: dict[str, Any]) -> Any:
    """A mask of class `cls`, subclasses included, with these fields."""
    mask = cls._carrier(fields["_subtensor"]).as_subclass(cls)
    for name, value in fields.items():
        setattr(mask, name, value)
    return mask


class LowerTriangularMask(AttentionBiasSubTensor):
    """Causal: query i sees the keys j <= i. A tensor of no dimensions, whose `_subtensor` is empty."""

    HOLDS_DENSE_TENSOR = False
    _TAKES_3D = True
    _BAND = CAUSAL

    @staticmethod
    def __new__(cls, *, _subtensor: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if _subtensor is None:
            _subtensor = torch.empty((0,), device=default_device())
        mask = cls._carrier(_subtensor).as_subclass(cls)
        mask._subtensor = _subtensor
        return mask

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @classmethod
    def _carrier(cls, subtensor: torch.Tensor) -> torch.Tensor:
        return subtensor.new_zeros(())

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        return (None, -1, 0)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}()"

    def add_bias(self, bias: torch.Tensor) -> "LowerTriangularMaskWithTensorBias":
        """The same, and `bias` added to the scores; gradients flow to it."""
        return LowerTriangularMaskWithTensorBias(bias)

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        return materialize_band(shape[-2], shape[-1], CAUSAL, dtype, device).expand(*shape)


class LowerTriangularMaskWithTensorBias(LowerTriangularMask):
    """Causal, and a tensor [batch, (groups, heads,) seqlen_q, seqlen_k] in the query's dtype added to the scores. It
    has that tensor's shape, dtype, device and gradient."""

    HOLDS_DENSE_TENSOR = True
    _TAKES_3D = False
    _KEEPS = _KEEP_CLASS | _SLICES

    @staticmethod
    def __new__(cls, bias: torch.Tensor, **kwargs: Any) -> Any:
        mask = bias.as_subclass(cls)
        mask._subtensor = bias
        return mask

    @classmethod
    def _carrier(cls, subtensor: torch.Tensor) -> torch.Tensor:
        return subtensor

    def _dense(self) -> torch.Tensor:
        """The bias as a plain tensor, through which gradients reach the mask and what it was made of."""
        if torch.compiler.is_compiling():
            return self._subtensor
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        return (self._dense(), -1, 0)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}({self._subtensor!r})"

    def add_bias(self, bias: torch.Tensor) -> "LowerTriangularMaskWithTensorBias":
        raise NotImplementedError(
            f"attn_bias: add_bias is called on a {type(self).__name__}, expected a LowerTriangularMask.  "
            "Fix: add both tensors first."
        )

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        return super().materialize(shape, dtype, device) + self._subtensor.detach().to(device=device, dtype=dtype)
