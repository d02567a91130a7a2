"""A feed-forward layer of many experts, of which each token visits few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from xformers._activation import Activation

from ._registry import register_feedforward
from .base import Feedforward, FeedforwardConfig
from .mlp import MLP


class GateConfig(str, Enum):
    """Gates by name."""

    RoundRobin = "round_robin"  # token i goes to expert i % number_of_experts, with weight 1
    Top2 = "top_2"  # "GShard" (Lepikhin et al., arXiv:2006.16668)


class Routes(NamedTuple):
    """Where the k choices of each of T tokens go: xformers/ops/experts/experts.h."""

    aux_loss: torch.Tensor  # []
    weights: torch.Tensor | None  # [T, k], 0 where dropped; None: all 1
    tokens: torch.Tensor  # int64 [T k]: the token of each row, in the order of experts; dropped ones last
    slots: torch.Tensor  # int64 [T, k]: the row of each choice
    counts: torch.Tensor  # int64 [number_of_experts]: rows of each expert


class RoundRobinGate(nn.Module):
    """Token i goes to expert i % number_of_experts."""

    def __init__(self, model_dim: int, num_experts: int):
        super().__init__()
        self.model_dim = model_dim
        self.num_experts = num_experts

    def forward(self, x: torch.Tensor) -> Routes:
        choices = torch.arange(x.shape[0], device=x.device).remainder(self.num_experts).unsqueeze(1)
        tokens, slots, counts, _ = torch.ops.xformers.expert_places(choices, self.num_experts)
        return Routes(x.new_zeros(()), None, tokens, slots, counts)


class TopKGate(nn.Module):
    """The `k` largest gates of `softmax(wg x)`; the second and later choices with Gumbel noise.

    An expert takes `capacity_factor * k * T // num_experts` of T tokens, first choices first; what is over that is
    dropped. None drops nothing. `route_top_k` of xformers/ops/experts/experts.h has the formula.
    """

    def __init__(self, model_dim: int, num_experts: int, k: int = 2, capacity_factor: float | None = 1.0):
        super().__init__()
        if not 1 <= k <= num_experts:
            raise ValueError(
                f"MixtureOfExperts: top_k is {k}, expected 1 to {num_experts}, the number of experts.  "
                "Fix: choose fewer."
            )
        if capacity_factor is not None and capacity_factor <= 0:
            raise ValueError(
                f"MixtureOfExperts: capacity_factor is {capacity_factor}, expected a positive number, or None to drop "
                "nothing.  Fix: pass 1.0 for experts that hold an even share."
            )
        self.k = k
        self.capacity_factor = capacity_factor
        self.wg = nn.Linear(model_dim, num_experts, bias=False)

    def forward(self, x: torch.Tensor) -> Routes:
        logits = self.wg(x)
        capacity = None
        if self.capacity_factor is not None:
            capacity = int(self.capacity_factor * self.k * x.shape[0] / self.wg.out_features)
        noise = torch.empty_like(logits, dtype=torch.float32).exponential_().log_().neg_() if self.k > 1 else None
        route = torch.ops.xformers.route_top_k
        _, weights, aux_loss, tokens, slots, counts = route(logits, self.k, capacity, noise)
        return Routes(aux_loss, weights, tokens, slots, counts)


class Experts(nn.Module):
    """Tokens `[T, dim]` through a gate and its experts; `l_aux` is the gate's auxiliary loss of the last call.

    Experts are spread over the processes of `group`, as many to each, in the order of ranks.
    """

    def __init__(self, gate: nn.Module, experts: list[nn.Module], group: Any, num_experts: int):
        super().__init__()
        self.gate = gate
        self.experts = nn.ModuleList(experts)
        self.num_experts = num_experts
        self.group = group
        self.l_aux: torch.Tensor | None = None
        self._mark()

    def _mark(self) -> None:
        for parameter in self.experts.parameters():
            parameter.expert = True  # type: ignore[attr-defined]  # data-parallel wrappers skip them

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to one call or one process."""
        return {**self.__dict__, "l_aux": None, "group": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        routes = self.gate(x)
        if not isinstance(routes, Routes):
            return self._by_one_hot(x, *routes)
        self.l_aux = routes.aux_loss
        rows = torch.ops.xformers.experts_gather(x, routes.tokens, routes.slots)
        rows = self._everywhere(rows, routes.counts)
        return torch.ops.xformers.experts_combine(rows, routes.tokens, routes.slots, routes.weights)

    def _by_one_hot(
        self, x: torch.Tensor, l_aux: torch.Tensor, combine: torch.Tensor, dispatch: torch.Tensor
    ) -> torch.Tensor:
        """A gate of the user's: combine `[T, E, C]`, dispatch bool `[T, E, C]`. Its zeros are not multiplied."""
        self.l_aux = l_aux
        experts, tokens, places = dispatch.transpose(0, 1).nonzero(as_tuple=True)  # in the order of experts
        counts = torch.bincount(experts, minlength=self.num_experts)
        rows = self._everywhere(x.index_select(0, tokens), counts)
        weighted = rows * combine[tokens, experts, places].to(rows.dtype).unsqueeze(1)
        return rows.new_zeros(x.shape[0], rows.shape[1]).index_add(0, tokens, weighted)

    def _everywhere(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """All experts on their rows, `counts` of each, wherever they live."""
        local = len(self.experts)
        ranks = self.num_experts // local
        if ranks == 1:
            return self._here(rows, counts)
        group: Any = self.group or dist.group.WORLD
        exchange, gather, name = torch.ops.xformers.exchange_rows, torch.ops.xformers.experts_gather, group.group_name
        # Numbers of rows first; then the rows, which arrive by rank and, from each, by expert.
        arriving = exchange(counts, [local] * ranks, [local] * ranks, name)
        sent = counts.view(ranks, local).sum(1).tolist()
        received = arriving.view(ranks, local).sum(1).tolist()
        kept = rows.narrow(0, 0, sum(sent))
        here = exchange(kept, received, sent, name)
        experts = torch.arange(local, device=rows.device).repeat(ranks)
        experts = experts.repeat_interleave(arriving, output_size=sum(received))
        order = experts.argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        done = self._here(gather(here, order, back.unsqueeze(1)), arriving.view(ranks, local).sum(0))
        done = exchange(gather(done, back, order.unsqueeze(1)), sent, received, name)
        return torch.cat([done, done.new_zeros(rows.shape[0] - done.shape[0], done.shape[1])])

    def _here(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """This process's experts on their rows; rows behind those of the last one give zeros."""
        experts: list[Any] = list(self.experts)
        if all(type(expert) is MLP for expert in experts):
            layers = [(expert.mlp[0], expert.mlp[3]) for expert in experts]
            w1, b1 = [first.weight for first, _ in layers], [first.bias for first, _ in layers]
            w2, b2 = [last.weight for _, last in layers], [last.bias for _, last in layers]
            expert = experts[0]
            activation = "gelu_exact" if expert.activation == Activation.GeLU.value else expert.activation
            if activation != "gelu_exact" or rows.device.type == "cpu":
                p = float(expert.mlp[2].p) if self.training else 0.0
                b1, b2 = ([], []) if b1[0] is None else (b1, b2)
                return torch.ops.xformers.experts_mlp(rows, counts, w1, b1, w2, b2, activation, p)
        sizes = counts.tolist()
        parts = rows.split([*sizes, rows.shape[0] - sum(sizes)])
        done = [
            expert(part.unsqueeze(0)).squeeze(0) for expert, part in zip(self.experts, parts, strict=False) if len(part)
        ]
        return torch.cat([*done, torch.zeros_like(parts[-1])])


@dataclass
class MoEConfig(FeedforwardConfig):
    """Options of MixtureOfExperts."""

    number_of_experts: int
    gate: GateConfig | nn.Module
    number_of_local_experts: int | None = None
    expert_constructor: Any | None = None
    hidden_layer_multiplier: int | None = None
    group: Any | None = None
    top_k: int | None = None
    capacity_factor: float | None = 1.0
    bias: bool | None = None

    # A capacity_factor of None means something: it reaches the constructor as it is.


@register_feedforward("MixtureOfExperts", MoEConfig)
class MixtureOfExperts(Feedforward):
    """Each token of `[batch, seqlen, dim_model]` goes to few of `number_of_experts` feed-forward layers.

    gate: "round_robin", "top_2", or a module `gate(x [T, dim]) -> (aux loss, combine [T, E, C], dispatch bool [T, E,
    C])`. top_k: experts per token of "top_2". capacity_factor: an expert takes at most `capacity_factor * top_k * T //
    number_of_experts` of T tokens; None drops nothing ("MegaBlocks", Gale et al., arXiv:2211.15841). Tokens are counted
    sequence first. The auxiliary loss of a call, which the trainer adds, is `moe.l_aux`.

    Experts are MLPs of `hidden_layer_multiplier` (4), or what `expert_constructor()` gives, which is called on its
    tokens, `[1, tokens, dim]`. Their parameters carry `expert = True`. With more than one process expert e lives on
    rank `e // number_of_local_experts` of `group` (the default one), and tokens travel by all-to-all.

    No tensor has a one-hot dimension: rows move by their numbers, and each has one owner on its way back, so that the
    same input gives the same bits. AssertionError where experts don't divide over the processes; ValueError for other
    options that make no sense, or without a process group where there are experts on other processes.
    """

    def __init__(
        self,
        dim_model: int,
        dropout: float = 0.0,
        activation: Activation | str | None = None,
        number_of_experts: int = 1,
        gate: GateConfig | str | nn.Module = GateConfig.RoundRobin,
        number_of_local_experts: int | None = None,
        expert_constructor: Callable[[], nn.Module] | None = None,
        hidden_layer_multiplier: int | None = None,
        group: Any | None = None,
        *_: object,
        top_k: int = 2,
        capacity_factor: float | None = 1.0,
        bias: bool = True,
        **__: object,
    ):
        super().__init__()
        ranks = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
        local = number_of_local_experts or (number_of_experts if ranks == 1 else 1)
        name = "MixtureOfExperts"
        assert number_of_experts >= local, (
            f"{name}: number_of_local_experts is {local}, expected at most {number_of_experts}, the number of "
            "experts.  Fix: pass fewer local ones."
        )
        if ranks == 1 and local != number_of_experts:
            raise ValueError(
                f"{name}: the process group is missing or has one process, expected more for {number_of_experts} "
                f"experts of which {local} are local.  Fix: call torch.distributed.init_process_group first, or leave "
                "number_of_local_experts out."
            )
        assert ranks * local == number_of_experts, (
            f"{name}: number_of_experts is {number_of_experts}, expected {ranks * local}, {local} for each of {ranks} "
            "processes.  Fix: pass number_of_local_experts = number_of_experts / processes."
        )

        if isinstance(gate, nn.Module):
            self.gate = gate
        else:
            try:
                kind = GateConfig(gate)
            except ValueError:
                names = ", ".join(repr(member.value) for member in GateConfig)
                raise ValueError(
                    f"{name}: gate is {gate!r}, expected {names} or a module.  Fix: choose one of them."
                ) from None
            self.gate = (
                RoundRobinGate(dim_model, number_of_experts)
                if kind == GateConfig.RoundRobin
                else TopKGate(dim_model, number_of_experts, top_k, capacity_factor)
            )

        def mlp() -> nn.Module:
            return MLP(dim_model, dropout, activation, hidden_layer_multiplier or 4, bias)

        experts = [(expert_constructor or mlp)() for _ in range(local)]
        self.moe = Experts(self.gate, experts, group, number_of_experts)

    @classmethod
    def from_config(cls, config: FeedforwardConfig) -> MixtureOfExperts:
        options = {key: value for key, value in vars(config).items() if value is not None or key == "capacity_factor"}
        return cls(**options)

    def forward(self, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        tokens = inputs.transpose(0, 1)  # [seqlen, batch, dim]
        out = self.moe(tokens.reshape(-1, tokens.shape[-1]))
        return out.view(*tokens.shape[:-1], out.shape[-1]).transpose(0, 1)


__all__ = ["GateConfig", "MixtureOfExperts", "MoEConfig", "RoundRobinGate", "TopKGate"]
