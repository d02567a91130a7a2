"""Stacks of layers that keep nothing but their output: backward rebuilds every layer's input from it.

y1 = x1 + f(x2), y2 = x2 + g(y1) on halves of x, so x2 = y2 - g(y1) and x1 = y1 - f(x2). From "The Reversible Residual
Network" (Gomez et al., arXiv:1707.04585) and "Reformer" (Kitaev et al., arXiv:2001.04451).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from .residual import RequiresWrappedInputs

_Gradients = dict[torch.Tensor, torch.Tensor]
_Rng = tuple[torch.Tensor, list[int], list[torch.Tensor]]  # of the CPU; devices, and theirs


def _autocast_states(device: str) -> list[AbstractContextManager[Any]]:
    """What autocast does now, for the CPU and for `device`, to be entered again in backward."""
    kinds = {"cpu", device} if torch.amp.autocast_mode.is_autocast_available(device) else {"cpu"}
    return [
        torch.autocast(
            kind,
            enabled=torch.is_autocast_enabled(kind),
            dtype=torch.get_autocast_dtype(kind),
            cache_enabled=torch.is_autocast_cache_enabled(),
        )
        for kind in sorted(kinds)
    ]


class Deterministic(nn.Module):
    """A layer that can be run again with the random numbers of an earlier call."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.rng: _Rng | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the state of one call."""
        return {**self.__dict__, "rng": None}

    def record_rng(self, *args: Any) -> None:
        """The state of the generators of the CPU and of the devices of args."""
        self.rng = (torch.get_rng_state(), *get_device_states(*args))

    def forward(self, *args: Any, record_rng: bool = False, set_rng: bool = False, **kwargs: Any) -> Any:
        """record_rng: remembers the random state before the call. set_rng: calls with it; the states of all generators
        are afterwards what they were."""
        if record_rng:
            self.record_rng(*args)
        if not set_rng or self.rng is None:
            return self._run(*args, **kwargs)
        cpu_state, devices, device_states = self.rng
        with torch.random.fork_rng(devices=devices, enabled=True):
            torch.set_rng_state(cpu_state)
            set_device_states(devices, device_states)
            return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.net, RequiresWrappedInputs):
            return self.net(inputs=list(args), **kwargs)
        return self.net(*args, **kwargs)


class ReversibleBlock(nn.Module):
    """One pair of layers on the halves of x along `split_dim`."""

    def __init__(self, f: nn.Module, g: nn.Module, split_dim: int = -1):
        super().__init__()
        self.f = Deterministic(f)
        self.g = Deterministic(g)
        self.split_dim = split_dim

    def forward(
        self, x: torch.Tensor, f_args: dict[str, Any] | None = None, g_args: dict[str, Any] | None = None
    ) -> torch.Tensor:
        """x with an even size along split_dim. ValueError for an odd one."""
        if x.shape[self.split_dim] % 2:
            raise ValueError(
                f"ReversibleBlock: x is {list(x.shape)}, expected an even size along dimension {self.split_dim}.  Fix: "
                "concatenate x with itself, as xFormer does."
            )
        f_args, g_args = f_args or {}, g_args or {}
        x1, x2 = x.chunk(2, dim=self.split_dim)
        record = self.training
        y1 = x1 + self.f(x2, record_rng=record, **f_args)
        y2 = x2 + self.g(y1, record_rng=record, **g_args)
        return torch.cat([y1, y2], dim=self.split_dim)

    def backward_pass(
        self, y: torch.Tensor, dy: torch.Tensor, f_args: dict[str, Any], g_args: dict[str, Any], grads: _Gradients
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The input of the call whose output was y, and its gradient. `grads` collects those of parameters and of
        arguments that require them."""
        y1, y2 = y.detach().chunk(2, dim=self.split_dim)
        dy1, dy2 = dy.chunk(2, dim=self.split_dim)
        x2, dx1 = self._undo(self.g, y1, y2, dy1, dy2, g_args, grads)
        x1, dx2 = self._undo(self.f, x2, y1, dy2, dx1, f_args, grads)
        return torch.cat([x1, x2], dim=self.split_dim), torch.cat([dx1, dx2], dim=self.split_dim)

    @staticmethod
    def _undo(
        layer: Deterministic,
        given: torch.Tensor,
        result: torch.Tensor,
        d_given: torch.Tensor,
        d_result: torch.Tensor,
        kwargs: dict[str, Any],
        grads: _Gradients,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of result = old + layer(given): old, and the gradient of given (d_given is what it has from elsewhere)."""
        with torch.enable_grad():
            given = given.detach().requires_grad_()
            update = layer(given, set_rng=True, **kwargs)
        leaves = [t for t in (*layer.parameters(), *kwargs.values()) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not update.requires_grad:
            return result - update, d_given
        found = torch.autograd.grad(update, [given, *leaves], d_result.to(update.dtype), allow_unused=True)
        for leaf, grad in zip(leaves, found[1:], strict=True):
            if grad is not None:
                grads[leaf] = grads[leaf] + grad if leaf in grads else grad
        with torch.no_grad():
            return result - update, d_given if found[0] is None else d_given + found[0]


class _ReversibleFunction(torch.autograd.Function):
    """The whole stack as one node. `leaves`: the arguments called `names`, then the parameters, that need gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        blocks: Any,
        f_args: dict[str, Any],
        g_args: dict[str, Any],
        names: list[str],
        *leaves: torch.Tensor,
    ) -> torch.Tensor:
        ctx.blocks, ctx.names = blocks, names
        ctx.f_args, ctx.g_args = ({n: v for n, v in args.items() if n not in names} for args in (f_args, g_args))
        ctx.of_f, ctx.of_g = ([n for n in names if n in args] for args in (f_args, g_args))
        ctx.autocast = _autocast_states(x.device.type)
        ctx.rng = []
        for block in blocks:
            x = block(x, f_args, g_args)
            ctx.rng.append((block.f.rng, block.g.rng))
        ctx.save_for_backward(x, *leaves)
        return x.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        y, *leaves = ctx.saved_tensors
        count = len(ctx.names)
        # Arguments of their own, so that their gradients go on to whatever made them.
        copies = {name: leaf.detach().requires_grad_() for name, leaf in zip(ctx.names, leaves, strict=False)}
        f_args = {**ctx.f_args, **{name: copies[name] for name in ctx.of_f}}
        g_args = {**ctx.g_args, **{name: copies[name] for name in ctx.of_g}}
        grads: _Gradients = {}
        with ExitStack() as stack:
            for autocast in ctx.autocast:
                stack.enter_context(autocast)
            for block, (f_rng, g_rng) in zip(reversed(ctx.blocks), reversed(ctx.rng), strict=True):
                block.f.rng, block.g.rng = f_rng, g_rng  # of this call: there may have been others since
                y, dy = block.backward_pass(y, dy, f_args, g_args, grads)
        of_arguments = [grads.get(copies[name]) for name in ctx.names]
        return dy, None, None, None, None, *of_arguments, *(grads.get(leaf) for leaf in leaves[count:])


_apply: Callable[..., torch.Tensor] = _ReversibleFunction.apply


class ReversibleSequence(nn.Module):
    """Pairs (f, g) of layers, of which nothing is kept for backward but the last output.

    `forward(x, arg_route=(True, False), **kwargs)`: kwargs go to f, to g, as arg_route says; tensors among them that
    require gradients get them. Dropout repeats in backward. Gradients are those of the stored form up to rounding,
    since inputs are rebuilt by subtraction. Memory for activations is that of one pair, time that of one more forward.

    Under torch.utils.checkpoint, torch.func or double backward use the plain form instead: `for block in self.blocks`.
    """

    def __init__(self, blocks: Iterable[Any], split_dim: int = -1):
        super().__init__()
        self.blocks: Any = nn.ModuleList([ReversibleBlock(f, g, split_dim) for f, g in blocks])

    def forward(self, x: torch.Tensor, arg_route: tuple[bool, bool] = (True, False), **kwargs: Any) -> torch.Tensor:
        f_args, g_args = (kwargs if route else {} for route in arg_route)
        if not torch.is_grad_enabled() or len(self.blocks) == 0:
            for block in self.blocks:
                x = block(x, f_args, g_args)
            return x
        names = [n for n, v in kwargs.items() if any(arg_route) and isinstance(v, torch.Tensor) and v.requires_grad]
        leaves = [*(kwargs[name] for name in names), *(p for p in self.parameters() if p.requires_grad)]
        return _apply(x, self.blocks, f_args, g_args, names, *leaves)


__all__ = ["Deterministic", "ReversibleBlock", "ReversibleSequence"]
