"""What each operator of a function costs: time, and bytes that keeping its outputs takes."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from ._facts import FACTS, Facts, storage_of, tensors

# Passes through the function: one that warms up and counts bytes, and those whose median time counts. The number is
# fixed, since ranks that communicate must make the same number of calls.
_TIMED_PASSES = 5

# times="estimate": FLOP/s and bytes/s that products and copies reach. Only their ratio matters for a choice. CPU: one
# core with AVX-512, and its memory; GPU: two thirds of an H200's bf16 and memory rates.
_RATES = {"cpu": (1.2e11, 1.2e10), "cuda": (6.6e14, 3.2e12)}


@dataclasses.dataclass
class Operator:
    """One operator of a function, in the order of the calls."""

    name: str  # "aten.mm.default"
    seconds: float
    bytes: int  # of the memory that its outputs newly hold
    view: bool = False
    random: bool = False
    parent: int | None = None  # writes in place into what this operator made; itself: into something from outside
    saved: int = 0  # of the bytes, how many autograd keeps for backward where nothing is checkpointed


# The result of a call, and a function that says how many seconds it took, once all are under way.
_Timed = tuple[Any, Callable[[], float]]


class _ProfileMode(TorchDispatchMode):
    def __init__(self, time_call: Callable[[Any, Facts, tuple[Any, ...], dict[str, Any]], _Timed]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self._time_call = time_call
        self._seconds: list[Callable[[], float]] = []
        self._owner: dict[int, int] = {}
        self._alive: list[Any] = []  # keeps the addresses of all tensors apart
        self._saved: set[int] = set()  # memory that autograd would keep
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []  # tensors from outside and what they held

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        facts = FACTS[func]
        if not facts.is_counted(args):
            return func(*args, **kwargs)
        written = facts.written(args, kwargs)
        for t in written:
            if storage_of(t) not in self._owner and all(t is not known for known, _ in self._before):
                with _disable_current_modes():
                    self._before.append((t, t.detach().clone()))
        out, seconds = self._time_call(func, facts, args, kwargs)
        index = len(self.operators)
        self._seconds.append(seconds)
        operator = Operator(str(func), 0.0, 0, view=facts.view, random=facts.draws(args, kwargs))
        self.operators.append(operator)
        inputs = {storage_of(t) for value in (*args, *kwargs.values()) for t in tensors(value)}
        for t in tensors(out):
            storage = storage_of(t)
            if storage in inputs:
                operator.view = operator.view or not written
            elif not facts.view and storage not in self._owner:
                operator.bytes += t.untyped_storage().nbytes()
                self._owner[storage] = index
                self._alive.append(t.untyped_storage())
        operator.view = operator.view or not facts.keepable
        if facts.in_place and written:
            operator.parent = self._owner.get(storage_of(written[0]), index)
        return out

    def note_saved(self, t: torch.Tensor) -> Any:
        """Of autograd: it would keep this tensor."""
        storage = storage_of(t)
        owner = self._owner.get(storage)
        if owner is not None and storage not in self._saved:
            self._saved.add(storage)
            self.operators[owner].saved += t.untyped_storage().nbytes()

    def finish(self) -> list[Operator]:
        """The operators with their times; their outputs are let go."""
        for operator, seconds in zip(self.operators, self._seconds, strict=True):
            operator.seconds = seconds()
        self._alive.clear()
        return self.operators

    def restore(self) -> None:
        """What tensors from outside held."""
        with torch.no_grad(), _disable_current_modes():
            for t, before in self._before:
                with _unsafe_preserve_version_counter(t):
                    t.copy_(before)


def _by_events(call: Callable[[], Any]) -> _Timed:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    out = call()
    end.record()

    def seconds() -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return out, seconds


def _by_clock(call: Callable[[], Any]) -> _Timed:
    start = time.perf_counter()
    out = call()
    end = time.perf_counter()
    return out, lambda: end - start


def _measure(func: Any, facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Timed:
    """Nothing waits for a GPU between operators. Views are free."""
    if facts.view:
        return func(*args, **kwargs), lambda: 0.0
    first = next((t for value in (*args, *kwargs.values()) for t in tensors(value)), None)
    on_gpu = first is not None and first.device.type == "cuda"
    return (_by_events if on_gpu else _by_clock)(lambda: func(*args, **kwargs))


def _estimate(func: Any, facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Timed:
    """The result without data, and the time that arithmetic or memory takes, whichever takes longer."""
    from torch.utils.flop_counter import flop_registry

    out = func(*args, **kwargs)
    if facts.view:
        return out, lambda: 0.0
    touched = [t for value in (*args, *kwargs.values(), out) for t in tensors(value)]
    touched += [t for t in tensors(out) if isinstance(out, list | tuple)]
    count = flop_registry.get(getattr(func, "overloadpacket", None))
    flops = count(*args, **kwargs, out_val=out) if count else sum(t.numel() for t in touched)
    device = touched[0].device.type if touched else "cpu"
    rate, bandwidth = _RATES.get(device, _RATES["cuda"])
    seconds = max(flops / rate, sum(t.numel() * t.element_size() for t in touched) / bandwidth)
    return out, lambda: seconds


@contextlib.contextmanager
def forked_random_state() -> Iterator[None]:
    """Random numbers that are drawn inside do not move the generators of the CPU or of the current GPU."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def profile_operators(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], times: str = "measure"
) -> list[Operator]:
    """times: "measure" runs the function a few times, the device's time of every operator is the median; "estimate"
    runs it once, on tensors without data, and takes times from operations and bytes. Random generators, and buffers
    into which it writes, are afterwards what they were."""
    if times not in ("measure", "estimate"):
        raise ValueError(
            f"checkpoint: times is {times!r}, expected 'measure' or 'estimate'.  Fix: 'estimate' costs no memory and "
            "is the same on every run."
        )
    if times == "estimate":
        return _one_pass(function, args, kwargs, _estimate, FakeTensorMode(allow_non_fake_inputs=True))
    first, *timed = (_one_pass(function, args, kwargs, _measure) for _ in range(1 + _TIMED_PASSES))
    # What a function remembers, it does not run again: then a pass says nothing about the first one's operators.
    names = [operator.name for operator in first]
    alike = [operators for operators in timed if [operator.name for operator in operators] == names]
    for i, operator in enumerate(first if alike else ()):
        operator.seconds = statistics.median(operators[i].seconds for operators in alike)
    return first


def _one_pass(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    time_call: Callable[..., _Timed],
    fake: FakeTensorMode | None = None,
) -> list[Operator]:
    """fake: tensors have no data."""
    mode = _ProfileMode(time_call)

    def leaf(t: torch.Tensor) -> torch.Tensor:
        t, requires_grad = t.detach(), t.requires_grad
        return (t if fake is None else fake.from_tensor(t)).requires_grad_(requires_grad)

    with contextlib.ExitStack() as stack:
        stack.enter_context(forked_random_state())
        if fake is not None:
            stack.enter_context(fake)
        args, kwargs = tree_map_only(torch.Tensor, leaf, (args, kwargs))
        stack.enter_context(torch.enable_grad())
        # Weights that are cast here must not be remembered by the caller's autocast region.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        # Nothing of the graph stays: the function is not differentiated here.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(mode.note_saved, lambda t: t))
        try:
            with mode:
                function(*args, **kwargs)
        finally:
            mode.restore()
    return mode.finish()
