"""Linear layers whose weights are spread over the ranks of a group: near drop-ins for FairScale's and Megatron's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

InitMethod = Callable[[torch.Tensor], Any]
Group = dist.ProcessGroup | DeviceMesh


def _group_of(process_group: Group) -> dist.ProcessGroup:
    return process_group.get_group() if isinstance(process_group, DeviceMesh) else process_group


class _ParallelLinear(nn.Module):
    """What both layers share: a group, whole weights out and in. A copy that is unpickled finds its group by name."""

    _PART_DIM: int  # of a weight, along which ranks hold parts
    process_group: dist.ProcessGroup
    sequence_parallel: bool
    fuse_sequence_parallel: bool

    def __init__(self, process_group: Group, sequence_parallel: bool, fuse_sequence_parallel: bool):
        super().__init__()
        self.process_group = _group_of(process_group)
        self.sequence_parallel = sequence_parallel
        self.fuse_sequence_parallel = fuse_sequence_parallel

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"process_group": self.process_group.group_name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        group = c10d._resolve_process_group(state["process_group"])  # type: ignore[attr-defined]
        super().__setstate__(state | {"process_group": group})  # type: ignore[no-untyped-call]

    def _divided(self, name: str, features: int) -> int:
        ranks = self.process_group.size()
        if features % ranks != 0:
            raise AssertionError(
                f"{type(self).__name__}: {name} is {features}, expected a multiple of the number of ranks, {ranks}.  "
                "Fix: choose features that the ranks divide."
            )
        return features // ranks

    def _part_of_new(
        self, out_features: int, in_features: int, init_method: InitMethod, factory: dict[str, Any]
    ) -> nn.Parameter:
        """A whole weight is initialised on every rank, from the same random numbers; the rank keeps its part."""
        whole = torch.empty(out_features, in_features, **factory)
        init_method(whole)
        with torch.no_grad():
            return nn.Parameter(self._part(whole, self._PART_DIM))

    def _part(self, whole: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.ops.xformers._part_of_whole(whole, dim, self.process_group.group_name)

    def _is_whole(self, name: str) -> bool:
        raise NotImplementedError

    @torch.no_grad()
    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole weights on every rank, under the names of `state_dict()`: the same for every number of ranks."""
        operator, name = torch.ops.xformers._whole_of_parts, self.process_group.group_name
        return {
            key: value.detach().clone() if self._is_whole(key) else operator(value, self._PART_DIM, name)
            for key, value in self.state_dict().items()
        }

    @torch.no_grad()
    def load_full_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes this rank's part of what `full_state_dict` gave, with whatever number of ranks."""
        parts = {
            key: value if self._is_whole(key) else self._part(value, self._PART_DIM) for key, value in state.items()
        }
        self.load_state_dict(parts)


class ColumnParallelLinear(_ParallelLinear):
    """`x @ weight.T` for each of several weights, of whose rows each rank holds every ranks-th: row j of rank r is row
    `r + j * ranks` of the whole.

    out_features: of the whole layer, one for each result; the results are a list, or a tensor where this is an int.
        Multiples of the number of ranks.
    bias: begins as zero, spread like the weights. gather_output: every rank gets whole results.
    sequence_parallel: the input is this rank's shard of dim 0, and is gathered. fuse_sequence_parallel: see
        `sequence_parallel_leading_matmul`. Otherwise all ranks have the same input, whose gradient is a sum over ranks.
    process_group: a group, or a DeviceMesh of one dimension.
    """

    _PART_DIM = 0

    def __init__(
        self,
        in_features: int,
        out_features: int | list[int],
        *,
        process_group: Group,
        bias: bool = True,
        gather_output: bool = True,
        init_method: InitMethod = nn.init.xavier_normal_,
        sequence_parallel: bool = False,
        fuse_sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(process_group, sequence_parallel, fuse_sequence_parallel)
        if not isinstance(out_features, int | list | tuple):
            raise TypeError(
                f"ColumnParallelLinear: out_features is {type(out_features).__name__}, expected an int or a list.  "
                "Fix: pass one number for each result."
            )
        self.in_features = in_features
        self.returns_tensor = isinstance(out_features, int)
        self.global_out_features = [out_features] if isinstance(out_features, int) else list(out_features)
        self.my_out_features = [self._divided("an out_features", out) for out in self.global_out_features]
        self.gather_output = gather_output
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weights = nn.ParameterList(
            self._part_of_new(out, in_features, init_method, factory) for out in self.global_out_features
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(out, **factory)) for out in self.my_out_features if bias
        )

    def _is_whole(self, name: str) -> bool:
        return False

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        outputs = torch.ops.xformers.column_parallel_linear(
            x,
            list(self.weights),
            list(self.biases),
            self.process_group.group_name,
            self.gather_output,
            self.sequence_parallel,
            self.fuse_sequence_parallel,
        )
        return outputs[0] if self.returns_tensor else outputs


class RowParallelLinear(_ParallelLinear):
    """`x @ weight.T` for a weight of whose columns each rank holds every ranks-th, summed over the ranks.

    in_features: of the whole layer, a multiple of the number of ranks.
    bias: begins as zero; the same on every rank, added once, to the sum.
    input_is_parallel: the input is this rank's part of the features, as ColumnParallelLinear gives it; else all ranks
        have the same whole input.
    sequence_parallel: the result is this rank's shard of dim 0. fuse_sequence_parallel: see
        `sequence_parallel_trailing_matmul`. Otherwise every rank has the whole sum.
    """

    _PART_DIM = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        process_group: Group,
        bias: bool = True,
        input_is_parallel: bool = False,
        init_method: InitMethod = nn.init.xavier_normal_,
        sequence_parallel: bool = False,
        fuse_sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(process_group, sequence_parallel, fuse_sequence_parallel)
        self.global_in_features = in_features
        self.my_in_features = self._divided("in_features", in_features)
        self.out_features = out_features
        self.input_is_parallel = input_is_parallel
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = self._part_of_new(out_features, in_features, init_method, factory)
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None

    def _is_whole(self, name: str) -> bool:
        return name == "bias"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.xformers.row_parallel_linear(
            x,
            self.weight,
            self.bias,
            self.process_group.group_name,
            self.input_is_parallel,
            self.sequence_parallel,
            self.fuse_sequence_parallel,
        )


__all__ = ["ColumnParallelLinear", "RowParallelLinear"]
