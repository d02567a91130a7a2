"""How the parameters of a model begin. The rules are the library's (xformers/nn/functional/initialization.h); here is
the walk over the modules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_logger = logging.getLogger("xformers")
_assert_if_not_initialized = False  # AssertionError instead of a warning for parameters that no rule is for


class xFormerWeightInit(str, Enum):
    """Schemes by name; what each does is written in xformers/nn/functional/initialization.h."""

    Timm = "timm"
    ViT = "vit"
    Moco = "moco"
    Small = "small"


class DeferredInit(TorchFunctionMode):
    """While modules are built under it, the drawing that nn.Linear begins with waits: most of it would be thrown away.
    `draw` does it for what nobody else fills."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[int, tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.kaiming_uniform_:
            tensor = kwargs.get("tensor", args[0] if args else None)
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 2:
                self._waiting[id(tensor)] = (tensor, args, kwargs)
                return tensor
        return func(*args, **kwargs)

    def draw(self, tensors: Iterable[torch.Tensor]) -> None:
        """Those of the tensors that wait get their values."""
        for tensor in tensors:
            if id(tensor) in self._waiting:
                _, args, kwargs = self._waiting.pop(id(tensor))
                nn.init.kaiming_uniform_(*args, **kwargs)

    def filled(self, tensors: Iterable[torch.Tensor]) -> None:
        """Those of the tensors that wait have their values from elsewhere."""
        for tensor in tensors:
            self._waiting.pop(id(tensor), None)

    def finish(self) -> None:
        self.draw([tensor for tensor, _, _ in self._waiting.values()])


def _leaves(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are initialised as one, in order, each once."""
    if module in seen:
        return
    seen.add(module)
    children = list(module.named_children())
    if hasattr(module, "init_weights") or isinstance(module, (nn.Linear, nn.Conv2d)) or not children:
        yield name, module
        return
    for child_name, child in children:
        yield from _leaves(child, f"{name}.{child_name}" if name else child_name, seen)


def init_weights(
    module: nn.Module,
    name: str,
    scheme: xFormerWeightInit | str,
    gain: float = 1.0,
    deepnorm: bool = False,
    deferred: DeferredInit | None = None,
) -> None:
    """Fills the parameters of `module`, which the model calls `name`. deferred: what it was built under.

    A module with `init_weights(gain=...)` does so itself. Layer norms and embeddings keep what they began with; for
    other parameters without a rule there is a warning, or an AssertionError with `_assert_if_not_initialized`.
    """
    scheme = xFormerWeightInit(scheme)
    rows: list[tuple[str, str, nn.Module]] = []
    deferred = deferred or DeferredInit()

    def flush() -> None:
        layers: list[Any] = [layer for _, _, layer in rows]
        done = torch.ops.xformers.init_weights_(
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            [kind for kind, _, _ in rows],
            [layer_name for _, layer_name, _ in rows],
            scheme.value,
            gain,
            deepnorm,
        )
        for was_filled, (_, layer_name, layer) in zip(done, rows, strict=True):
            if was_filled:
                deferred.filled(layer.parameters())
            else:
                _not_initialised(layer_name, layer, scheme)
        rows.clear()

    with torch.no_grad():
        for leaf_name, leaf in _leaves(module, name, set()):
            own: Any = getattr(leaf, "init_weights", None)
            if own is not None:
                flush()  # the random numbers are drawn in the order of the modules
                deferred.draw(leaf.parameters())  # it may leave some of them
                own(gain=gain)
            elif isinstance(leaf, nn.Linear):
                rows.append(("linear", leaf_name, leaf))
            elif isinstance(leaf, nn.Conv2d):
                rows.append(("conv2d", leaf_name, leaf))
            elif not isinstance(leaf, (nn.LayerNorm, nn.Embedding)) and _has_weights(leaf):
                _not_initialised(leaf_name, leaf, scheme)
        flush()


def _has_weights(module: nn.Module) -> bool:
    return any(getattr(module, name, None) is not None for name in ("weight", "bias"))


def _not_initialised(name: str, module: nn.Module, scheme: xFormerWeightInit) -> None:
    text = (
        f"weight_init: {name} ({type(module).__name__}) is without a rule in {scheme.value!r}, expected a linear "
        "layer.  Fix: give its class a method init_weights(gain)."
    )
    assert not _assert_if_not_initialized, text
    _logger.warning("%s It keeps what it began with.", text)


__all__ = ["init_weights", "xFormerWeightInit"]
