"""The fastest training step that fits into a given memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_flatten

from ._facts import storage_of
from ._optimal import choose, costs, policy_of
from ._policies import OptimalPolicy
from ._profile import Operator, forked_random_state, profile_operators
from ._report import CheckpointReport
from ._wrapper import SelectiveCheckpointWrapper, same_on_all_ranks

_TRIALS = 8  # steps that are measured, beside the one that keeps everything and the one that keeps nothing
_CLOSE = 0.02  # of what may be kept: a policy that leaves no more than this unused is not improved


@dataclasses.dataclass
class FitReport:
    """What fit_to_memory chose."""

    peak_bytes: int  # asked for
    measured_bytes: int  # of one forward and backward, with what was chosen
    least_bytes: int  # where everything in the blocks is recomputed
    most_bytes: int | None  # where nothing is; None where that did not fit on the device
    blocks: dict[str, CheckpointReport | None]  # by name of the block; None: not checkpointed

    @property
    def recomputed_seconds(self) -> float:
        """What backward takes longer than without checkpointing."""
        return sum(report.recomputed_seconds for report in self.blocks.values() if report is not None)

    def __str__(self) -> str:
        def mib(n: int | None) -> str:
            return "more than there is" if n is None else f"{n / 2**20:.2f} MiB"

        lines = [
            f"peak: {mib(self.measured_bytes)} of {mib(self.peak_bytes)}; recomputing everything "
            f"{mib(self.least_bytes)}, nothing {mib(self.most_bytes)}; recomputed: "
            f"{self.recomputed_seconds * 1e3:.2f} ms"
        ]
        for name, report in self.blocks.items():
            if report is None:
                lines.append(f"{name}: not checkpointed")
            else:
                kept = sum(row.kept for row in report.rows)
                lines.append(f"{name}: {kept} of {len(report.rows)} operators kept, {mib(report.kept_bytes)}")
        return "\n".join(lines)


def _memory_of(tensors: Iterator[torch.Tensor]) -> int:
    return sum({storage_of(t): t.untyped_storage().nbytes() for t in tensors}.values())


def _tensors_of(*values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, torch.Tensor)]


class _Step:
    """Forward and backward of a module, leaving no trace, and the memory that they take."""

    def __init__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._module, self._args, self._kwargs = module, args, kwargs
        held = [*module.parameters(), *module.buffers(), *_tensors_of(args, kwargs)]
        self._held_bytes = _memory_of(iter(held))
        self._device = held[0].device if held else torch.device("cpu")

    def run(self) -> None:
        with torch.enable_grad():
            outputs = [t for t in _tensors_of(self._module(*self._args, **self._kwargs)) if t.requires_grad]
            torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])

    def peak(self) -> int | None:
        """Bytes at the fullest moment: parameters, buffers and inputs, and what the step allocates, gradients included.
        None where the device has less. The largest of all ranks."""
        with self._without_trace():
            try:
                rise = self._rise_on_gpu() if self._device.type == "cuda" else self._rise_on_cpu()
            except torch.OutOfMemoryError:
                rise = None
        peaks = [rise]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            peaks = [None] * dist.get_world_size()
            dist.all_gather_object(peaks, rise)
        known = [p for p in peaks if p is not None]
        return self._held_bytes + max(known) if len(known) == len(peaks) else None

    def _rise_on_gpu(self) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self.run()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def _rise_on_cpu(self) -> int:
        """From every allocation that PyTorch's profiler sees."""
        with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
            self.run()
        changes = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
        total = most = 0
        for event in sorted(changes, key=lambda e: e.start_ns()):
            total += event.nbytes()
            most = max(most, total)
        return most

    @contextlib.contextmanager
    def _without_trace(self) -> Iterator[None]:
        inputs = [t for t in _tensors_of(self._args, self._kwargs) if t.is_leaf]
        leaves = [*self._module.parameters(), *inputs]
        gradients = [leaf.grad for leaf in leaves]
        buffers = [(b, b.detach().clone()) for b in self._module.buffers()]
        try:
            for leaf in leaves:
                leaf.grad = None
            with forked_random_state():
                yield
        finally:
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


class _Blocks:
    """The submodules, each behind a wrapper whose policy can change."""

    def __init__(self, module: torch.nn.Module, blocks: Sequence[torch.nn.Module | str]) -> None:
        names = {id(m): name for name, m in module.named_modules() if name}
        self.wrappers: dict[str, SelectiveCheckpointWrapper] = {}
        self._places: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []
        for block in blocks:
            name = block if isinstance(block, str) else names.get(id(block))
            if name is None or not name:
                raise ValueError(
                    f"fit_to_memory: the block {type(block).__name__} is no submodule of the module, expected its own "
                    "parts, or their names.  Fix: fit_to_memory(model, list(model.layers), ...)."
                )
            parent_name, _, attribute = name.rpartition(".")
            parent, inner = module.get_submodule(parent_name), module.get_submodule(name)
            wrapper = SelectiveCheckpointWrapper(inner, policy_fn=[])
            self._places.append((parent, attribute, inner))
            self.wrappers[name] = wrapper
            setattr(parent, attribute, wrapper)

    def unwrap(self) -> None:
        for parent, attribute, inner in self._places:
            setattr(parent, attribute, inner)

    def checkpoint_nothing(self) -> None:
        for wrapper in self.wrappers.values():
            wrapper.memory_budget, wrapper.policy_fn = 1.0, None

    def recompute_everything(self) -> None:
        self.use({name: OptimalPolicy([], []) for name in self.wrappers})

    def use(self, policies: dict[str, OptimalPolicy | None]) -> None:
        """By name; None: the block is not checkpointed."""
        for name, wrapper in self.wrappers.items():
            policy = policies[name]
            wrapper.memory_budget, wrapper.policy_fn = (1.0, None) if policy is None else (None, policy)

    def profile(self, step: _Step) -> dict[str, list[Operator]]:
        """By name. Blocks of one class, with parameters and inputs of the same shapes, share one."""
        found: dict[str, list[Operator]] = {}
        of_kind: dict[Any, list[Operator]] = {}

        def look(name: str, wrapper: SelectiveCheckpointWrapper) -> Any:
            def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if name in found:
                    return
                inner = wrapper._checkpoint_wrapped_module
                seen = [*inner.parameters(), *inner.buffers(), *_tensors_of(args, kwargs)]
                kind = (type(inner), inner.extra_repr(), tuple((t.shape, t.dtype, t.requires_grad) for t in seen))
                if kind not in of_kind:
                    of_kind[kind] = profile_operators(inner, args, kwargs)
                found[name] = of_kind[kind]

            return wrapper.register_forward_pre_hook(hook, with_kwargs=True)

        hooks = [look(name, wrapper) for name, wrapper in self.wrappers.items()]
        try:
            with step._without_trace():
                step.run()
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _choose_for_all(profiles: dict[str, list[Operator]], max_bytes: int) -> dict[str, OptimalPolicy | None]:
    """One program over the operators of all blocks."""
    everything: list[Operator] = []
    for operators in profiles.values():
        offset = len(everything)
        everything += [
            dataclasses.replace(o, parent=None if o.parent is None else o.parent + offset) for o in operators
        ]
    kept = choose(everything, max_bytes)
    policies: dict[str, OptimalPolicy | None] = {}
    for name, operators in profiles.items():
        keeps, kept = kept[: len(operators)], kept[len(operators) :]
        memory, _ = costs(operators)
        whole = all(k or o.view or o.random or not m for k, o, m in zip(keeps, operators, memory, strict=True))
        policies[name] = None if whole else policy_of(operators, keeps)
    return policies


def fit_to_memory(
    module: torch.nn.Module, blocks: Sequence[torch.nn.Module | str], *args: Any, peak_bytes: int, **kwargs: Any
) -> FitReport:
    """Checkpoints `blocks`, submodules of `module` (or their names), so that they recompute least while one forward and
    backward of module(*args, **kwargs) takes at most `peak_bytes` at its fullest moment: parameters, buffers, inputs,
    gradients and activations together; an optimizer's state and other things on the device come on top.

    Every block is replaced, in its place, by a SelectiveCheckpointWrapper. The step is run and measured, here about ten
    times; gradients, buffers and random generators are afterwards what they were. Where everything fits, nothing is
    recomputed. All ranks call it together, get the policies of the first one, and the fullest of them has to fit.

    ValueError, with the least possible peak, where nothing fits: the module is then as it was."""
    step = _Step(module, args, kwargs)
    wrapped = _Blocks(module, blocks)
    try:
        wrapped.checkpoint_nothing()
        most = step.peak()
        wrapped.recompute_everything()
        least = step.peak()
        if most is not None and most <= peak_bytes:
            wrapped.checkpoint_nothing()
            return FitReport(peak_bytes, most, most if least is None else least, most, dict.fromkeys(wrapped.wrappers))
        if least is None or least > peak_bytes:
            known = [peak for peak in (least, most) if peak is not None]
            raise ValueError(
                f"fit_to_memory: peak_bytes is {peak_bytes}, expected at least "
                f"{min(known) if known else 'more than the device has'}: the least that a step takes, here where the "
                "blocks recompute everything.  Fix: a smaller batch, or more and smaller blocks."
            )
        profiles = wrapped.profile(step)
        best = _search(step, wrapped, profiles, peak_bytes, least)
    except BaseException:
        wrapped.unwrap()
        raise
    policies, measured = best
    wrapped.use(policies)
    reports = {name: None if policy is None else policy.report for name, policy in policies.items()}
    return FitReport(peak_bytes, measured, least, most, reports)


def _search(
    step: _Step, wrapped: _Blocks, profiles: dict[str, list[Operator]], peak_bytes: int, least: int
) -> tuple[dict[str, OptimalPolicy | None], int]:
    """The policies that keep most and fit, by measurement: what is kept is not all that a peak is made of."""
    best = _choose_for_all(profiles, 0), least
    fits, exceeds = 0, sum(sum(costs(operators)[0]) for operators in profiles.values()) + 1
    target = min(peak_bytes - least, exceeds - 1)
    for _ in range(_TRIALS):
        policies = same_on_all_ranks(_choose_for_all(profiles, target))
        wrapped.use(policies)
        peak = step.peak()
        if peak is not None and peak <= peak_bytes:
            best, fits = (policies, peak), target
            if peak_bytes - peak <= _CLOSE * (peak_bytes - least):
                break
            target = min(target + peak_bytes - peak, (target + exceeds) // 2 if exceeds - target > 1 else target)
        else:
            exceeds = target
            guess = target - (peak - peak_bytes) if peak is not None else -1
            target = guess if fits < guess < exceeds else (fits + exceeds) // 2
        if target in (fits, exceeds):
            break
    return best
