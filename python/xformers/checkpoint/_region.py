"""One checkpointed region: what its forward pass keeps, and how its recomputation uses that.

The hooks are PyTorch's (torch.utils.checkpoint): it runs the function under the first of two dispatch modes, and again,
when backward asks for the first saved tensor, under the second. The second follows the calls of the first in order and
answers a kept one from memory.

A kept value has to be what the function read, so:
- Views are made anew, on whatever their base is then.
- An operator that writes into a tensor of the region goes with the one that made it. Where both are kept and nothing
  came between them, memory holds the value after the write, and the write is left out. Where something did, which may
  have read the value before the write, that value is copied, and the write repeated on the copy.
- A tensor from outside was written in the forward pass: it is not written again.
- What was changed after the region is recomputed.
- Random operators that are left out do not move the generator, so those behind them get the state that they began with.
- Where the recomputation leaves operators out, since the function remembers their results, a kept value is used only
  for the same operator on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ._facts import FACTS, Facts, storage_of, tensors
from ._policies import Decisions

# Who made a tensor: an operator of the region, by its index from 0; else a negative number.
_CONSTANT, _UNKNOWN = -1, -2  # made from Python's numbers; by an operator that the forward pass did not have
_MISSING = object()


class _Call:
    """One operator of the forward pass."""

    __slots__ = (
        "clock",  # when its output was written last
        "follows",  # writes in place, and is left out wherever this other call is answered from memory
        "frozen",  # value is a copy from before a write
        "func",
        "index",
        "inputs",  # who made them
        "outside",  # of a call that writes in place: into tensors from outside of the region alone
        "random_state",
        "used",  # value was handed out, and is gone
        "value",  # kept outputs
        "versions",  # of these at the end of the region
    )

    def __init__(self, func: Any, index: int) -> None:
        self.func, self.index = func, index
        self.value: Any = _MISSING
        self.versions: tuple[int, ...] = ()
        self.inputs: list[int | None] = []
        self.used = self.frozen = self.outside = False
        self.clock = 0
        self.follows: _Call | None = None
        self.random_state: _RandomState | None = None


class Region:
    """What the two passes share. It knows nothing of them: what it keeps must go with the graph, not with the next
    garbage collection."""

    def __init__(self) -> None:
        # Without gradients and with them: hooks of FSDP and the like run without, and not in every pass.
        self.calls: tuple[list[_Call], list[_Call]] = ([], [])
        self.casts: dict[int, int] = {}  # what autocast made of parameters: memory -> who


class _Owners(dict[int, int]):
    """memory -> who made what lies there."""

    def of(self, t: torch.Tensor) -> int | None:
        """None: unknown, from outside of the region. Parameters are known by their memory."""
        storage = storage_of(t)
        owner = self.get(storage)
        return -storage if owner is None and isinstance(t, torch.nn.Parameter) else owner

    def of_inputs(self, args: tuple[Any, ...]) -> list[int | None]:
        return [self.of(t) for value in args for t in tensors(value)]

    def enter(self, out: Any, index: int) -> None:
        for t in tensors(out):
            self[storage_of(t)] = index

    def enter_uncounted(self, facts: Facts, args: tuple[Any, ...], out: Any) -> None:
        if facts.constant:
            self.enter(out, _CONSTANT)
        elif facts.casts:
            self.enter(out, -storage_of(args[0]))


def _same_inputs(a: list[int | None], b: list[int | None]) -> bool:
    """Whether two calls may have had the same inputs. What comes from outside is not known in every pass: autocast
    remembers casts of parameters, and the inputs of a nested region are recomputed."""
    return a == b or (len(a) == len(b) and all(map(_may_be_the_same, a, b)))


def _may_be_the_same(a: int | None, b: int | None) -> bool:
    known = b if a is None else a
    return a == b or ((a is None or b is None) and known is not None and known < _UNKNOWN)


class _RandomState:
    """Of the generators that an operator may draw from, before it does."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("generator")
        generators = [given] if given is not None else [torch.default_generator]
        if given is None:
            devices = {t.device for value in args for t in tensors(value)}
            if kwargs.get("device") is not None:
                devices.add(torch.device(kwargs["device"]))
            for device in devices:
                if device.type not in ("cpu", "meta"):
                    module = torch.get_device_module(device)
                    index = module.current_device() if device.index is None else device.index
                    generators.append(module.default_generators[index])
        self._states = [(generator, generator.get_state()) for generator in generators]

    def run(self, call: Callable[[], Any]) -> Any:
        """call() with this state; the generators go on as if nothing had been drawn."""
        before = [generator.get_state() for generator, _ in self._states]
        try:
            for generator, state in self._states:
                generator.set_state(state)
            return call()
        finally:
            for (generator, _), state in zip(self._states, before, strict=True):
                generator.set_state(state)


def _detached(out: Any) -> Any:
    """Another handle of each tensor, with the same version counter: what autograd adds to the outputs is not kept."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return out.detach() if isinstance(out, torch.Tensor) else tree_map_only(torch.Tensor, torch.Tensor.detach, out)


class _RegionMode(TorchDispatchMode):
    """Sees every operator of a region; those that are not counted, such as detach, run as they are."""

    _owners: _Owners

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        facts = FACTS[func]
        if not facts.is_counted(args):
            out = func(*args, **kwargs)
            self._owners.enter_uncounted(facts, args, out)
            return out
        return self._counted(func, facts, args, kwargs)

    def _counted(self, func: Any, facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError


class ForwardMode(_RegionMode):
    """Runs every operator, and keeps what the policy says."""

    def __init__(self, region: Region, policy: Decisions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._region, self._policy = region, policy
        self._owners = _Owners()
        self._kept: dict[int | None, _Call] = {}  # by index
        self._clock = 0  # operators that read or write so far
        self._diverged = False  # a recomputation will not have moved the generators as this pass has

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for call in self._kept.values():
            call.versions = tuple(t._version for t in tensors(call.value))
        self._region.casts = {storage: owner for storage, owner in self._owners.items() if owner < _UNKNOWN}
        self._owners.clear()
        self._kept.clear()

    def _counted(self, func: Any, facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with_gradients = torch.is_grad_enabled()
        calls = self._region.calls[with_gradients]
        call = _Call(func, 2 * len(calls) + with_gradients)
        calls.append(call)
        wanted = self._policy.keeps(func, args, kwargs) and facts.keepable
        if facts.view:
            return func(*args, **kwargs)
        self._clock += 1
        if facts.writes and (written := facts.written(args, kwargs)):
            return self._write(call, facts, wanted, written, args, kwargs)
        if facts.seeded and facts.draws(args, kwargs):
            self._look_at_generators(call, wanted, args, kwargs)
        out = func(*args, **kwargs)
        self._owners.enter(out, call.index)
        if wanted:
            self._keep(call, args, out)
        return out

    def _keep(self, call: _Call, args: tuple[Any, ...], out: Any) -> None:
        call.clock = self._clock
        call.value = _detached(out)
        call.inputs = self._owners.of_inputs(args)
        self._kept[call.index] = call

    def _look_at_generators(self, call: _Call, left_out: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if left_out or self._diverged or kwargs.get("generator") is not None:
            call.random_state = _RandomState(args, kwargs)
        self._diverged = self._diverged or left_out

    def _write(
        self,
        call: _Call,
        facts: Facts,
        wanted: bool,
        written: list[torch.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        storages = {storage_of(t) for t in written}
        owners = {self._owners.get(storage) for storage in storages}
        outside_alone = all(owner is None for owner in owners)
        call.outside = facts.in_place and outside_alone
        kept = [self._kept[owner] for owner in owners if owner in self._kept]
        parent = kept[0] if kept else None
        if facts.in_place and len(storages) == 1 and parent and not parent.frozen and parent.clock == self._clock - 1:
            call.follows = parent
            parent.clock = self._clock
        else:
            for one in kept:
                if not one.frozen:
                    one.value = tree_map_only(torch.Tensor, torch.Tensor.clone, one.value)
                    one.frozen = True
        keeps = wanted and not facts.in_place and outside_alone
        if facts.seeded and facts.draws(args, kwargs):
            self._look_at_generators(call, keeps or call.outside or call.follows is not None, args, kwargs)
        out = call.func(*args, **kwargs)
        self._owners.enter([t for t in tensors(out) if storage_of(t) not in storages], call.index)
        if keeps:
            self._keep(call, args, out)
        return out


class RecomputeMode(_RegionMode):
    """Runs the operators again, but for those that were kept."""

    def __init__(self, region: Region, policy: Decisions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._region, self._policy = region, policy
        self._owners = _Owners()
        self._restored: set[_Call] = set()  # answered from memory
        self._position = [0, 0]  # in the calls of the forward pass
        self._difference: str | None = None  # the first one

    def __enter__(self) -> Any:
        self._owners = _Owners(self._region.casts)
        self._restored, self._position, self._difference = set(), [0, 0], None
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._owners.clear()
        # PyTorch ends a recomputation, by an exception, once it has what backward needs. One that comes to its own end
        # has not found that.
        at, calls = self._position[True], self._region.calls[True]
        if kind is None and torch.utils.checkpoint._enable_checkpoint_early_stop is not False:
            if self._difference is None and at < len(calls):
                self._difference = _difference(at, calls[at].func, None)
            if self._difference is not None:
                raise _differs(self._difference)

    def _counted(self, func: Any, facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._match(func)
        if self._policy.observes_recomputation:
            self._policy.keeps(func, args, kwargs)
        if facts.view:
            return func(*args, **kwargs)
        if call is None:
            out = func(*args, **kwargs)
            self._owners.enter(out, _UNKNOWN)
            return out
        if facts.writes and (written := facts.written(args, kwargs)):
            return self._write(call, facts, written, args, kwargs)
        out = self._from_memory(call, args)
        if out is _MISSING:
            out = _run(call, args, kwargs)
        self._owners.enter(out, call.index)
        return out

    def _match(self, func: Any) -> _Call | None:
        """The call of the forward pass that is repeated now. The function may leave out what it remembers; an operator
        that it did not call is an error, but in the hooks that run without gradients."""
        with_gradients = torch.is_grad_enabled()
        calls, at = self._region.calls[with_gradients], self._position[with_gradients]
        for later in range(at, len(calls)):
            if calls[later].func is func:
                if later > at and with_gradients and self._difference is None:
                    self._difference = _difference(at, calls[at].func, func)
                self._position[with_gradients] = later + 1
                return calls[later]
        if with_gradients:
            raise _differs(self._difference or _difference(at, calls[at].func if at < len(calls) else None, func))
        return None

    def _from_memory(self, call: _Call, args: tuple[Any, ...]) -> Any:
        if call.used:
            raise RuntimeError(
                "checkpoint: this is a second backward pass through a checkpointed region, expected one: the outputs "
                f"of {call.func} were kept for one alone.  Fix: add the losses and call backward() once, or use "
                "policy_fn=[], which keeps nothing and recomputes every time."
            )
        if call.value is _MISSING or not _same_inputs(call.inputs, self._owners.of_inputs(args)):
            return _MISSING
        value, call.value = call.value, _MISSING
        if call.versions != tuple(t._version for t in tensors(value)):
            return _MISSING
        call.used = True
        self._restored.add(call)
        return value

    def _write(
        self, call: _Call, facts: Facts, written: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if call.outside or call.follows in self._restored:  # has been done
            returns = len(call.func._schema.returns)
            return written[0] if returns == 1 else tuple(written[:returns]) if returns else None
        out = self._from_memory(call, args)
        if out is _MISSING:
            # A tensor from outside is not written twice.
            args, kwargs = facts.replace_written(
                args, kwargs, lambda t: t if storage_of(t) in self._owners else t.detach().clone()
            )
            out = _run(call, args, kwargs)
        storages = {storage_of(t) for t in written}
        self._owners.enter([t for t in tensors(out) if storage_of(t) not in storages], call.index)
        return out


def _run(call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if call.random_state is None:
        return call.func(*args, **kwargs)
    return call.random_state.run(lambda: call.func(*args, **kwargs))


def _difference(at: int, before: Any, now: Any) -> str:
    return (
        f"operator {at} of its recomputation is {now or 'missing'}, expected {before or 'no further one'} as in the "
        "forward pass"
    )


def _differs(difference: str) -> RuntimeError:
    return RuntimeError(
        f"checkpoint: the function runs other operators when it is repeated: {difference}.  Fix: let nothing that "
        "changes between the two decide what it does (counters, global flags, Python's random numbers), or leave it "
        "out of the checkpoint."
    )
