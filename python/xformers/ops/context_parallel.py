"""Attention over a sequence that is spread over the ranks of a group."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from .fmha._lower import Bias, _lowered
from .fmha.attn_bias import AttentionBias

_LAYOUTS = ("contiguous", "zigzag", "documents", "striped")  # in the order of the library
_LAYOUT, _METHOD, _TEAM_SIZE = 4, 5, 6  # of a problem as numbers
_METHODS = ("all_gather", "ring", "ulysses", "hybrid")


@dataclass(frozen=True)
class ContextParallelPlan:
    """Who holds which tokens, and what is computed and sent where, the same on every rank: `plan_context_parallel`."""

    problem: tuple[int, ...]  # as the operators take it
    group_name: str
    layout: str
    method: str
    head_ranks: int  # how many ranks share out heads: 1, all of ulysses, some of hybrid
    positions: torch.Tensor = field(compare=False)  # int64 [local seqlen]: of each local token in the sequence
    seqlens: tuple[int, ...]  # of all ranks
    areas: tuple[int, ...]  # visible (query, key) pairs of all ranks, for each of their heads
    rows_received: tuple[int, ...]  # tokens whose keys and values all ranks are sent for other queries, forward
    elements_received: tuple[int, ...]  # how many numbers all ranks are sent, forward, with those of shared-out heads
    steps: str  # a line per rank
    explanation: str  # a line per plan that was compared, with its predicted time; * is the one that was taken

    def __str__(self) -> str:
        return f"{self.method}, {self.layout}\n{self.steps}"

    def explain(self) -> str:
        """Which plans were compared, their predicted times of forward and backward, and which was taken (*)."""
        return self.explanation


def plan_context_parallel(
    attn_bias: Bias,
    seqlen: int,
    *,
    process_group: dist.ProcessGroup,
    num_heads: int,
    head_dim: int,
    num_heads_kv: int | None = None,
    layout: str = "auto",
    method: str = "auto",
    head_ranks: int | None = None,
) -> ContextParallelPlan:
    """How attention with this bias over `seqlen` tokens is spread over the ranks of a group.

    attn_bias: the bias of the whole problem: None, any band (causal, windows), any class of packed sequences whose keys
        are its queries.
    layout: "contiguous": a chunk for each rank; "zigzag": rank r holds chunks r and 2 ranks - 1 - r of 2 ranks;
        "documents": pieces of documents, assigned so that visible areas balance; "striped": tokens in turn.
    method: "all_gather": the keys that somebody on a rank sees arrive at once, no others. "ring": those of one rank
        after another, each while the last are used; a rank holds two chunks. "ulysses": heads for tokens, each rank
        computes all tokens for some heads; keys and values of heads that several ranks read are sent to each.
        "hybrid": teams of `head_ranks` neighbouring ranks as ulysses, and between them as ring or all_gather.
    "auto": the one whose predicted time is the least, of those within 2 % the one that holds the fewest keys;
        `plan.explain()` says what was compared. It knows seqlen, heads and the kind of device (the group's backend), so
        it is the same on every rank.
    num_heads, head_dim, num_heads_kv: of the queries; num_heads_kv of the keys, where groups share them.
    Any seqlen and number of ranks; a rank may hold nothing. ValueError with the reason for what a plan can't express:
    no mask is ever replaced by another.
    """
    for name, value, names in (("method", method, _METHODS), ("layout", layout, _LAYOUTS)):
        if value != "auto" and value not in names:
            raise ValueError(
                f"plan_context_parallel: {name} is {value!r}, expected 'auto' or one of {', '.join(names)}.  "
                "Fix: leave it out."
            )
    if head_ranks is not None and (method != "hybrid" or head_ranks < 1):
        raise ValueError(
            f"plan_context_parallel: head_ranks is {head_ranks}, expected a divisor of the ranks, with method "
            "'hybrid'.  Fix: leave it out."
        )
    left, right, documents = _band_and_documents(attn_bias, seqlen)
    ranks, rank = process_group.size(), process_group.rank()
    heads = num_heads, num_heads_kv or num_heads, head_dim
    given = ["" if value == "auto" else value for value in (layout, method)]
    asked = [seqlen, ranks, left, right, 0, 0, 1, *documents]
    on_gpus = "nccl" in dist.get_backend(process_group)
    chosen, explanation = torch.ops.xformers._context_choose(asked, *given, head_ranks or 0, *heads, on_gpus)
    numbers = iter(torch.ops.xformers._context_plan(chosen, *heads))
    areas, received, elements, owned = [], [], [], []
    for _ in range(ranks):
        areas.append(next(numbers))
        received.append(next(numbers))
        elements.append(next(numbers))
        owned.append([(next(numbers), next(numbers), next(numbers)) for _ in range(next(numbers))])
    mine = [torch.arange(count) * stride + begin for begin, count, stride in owned[rank]]
    team_size, ringed = chosen[_TEAM_SIZE], bool(chosen[_METHOD])
    taken = ("ring" if ringed else "all_gather") if team_size == 1 else "ulysses" if team_size == ranks else "hybrid"
    return ContextParallelPlan(
        problem=tuple(chosen),
        group_name=process_group.group_name,
        layout=_LAYOUTS[chosen[_LAYOUT]],
        method=taken if method == "auto" else method,
        head_ranks=team_size,
        positions=torch.cat(mine) if mine else torch.arange(0),
        seqlens=tuple(sum(count for _, count, _ in runs) for runs in owned),
        areas=tuple(areas),
        rows_received=tuple(received),
        elements_received=tuple(elements),
        steps=torch.ops.xformers._context_plan_text(chosen),
        explanation=explanation,
    )


def _band_and_documents(attn_bias: Bias, seqlen: int) -> tuple[int, int, list[int]]:
    """(window_left, window_right, where documents begin)."""

    def refuse(what: str, expected: str, fix: str) -> ValueError:
        return ValueError(f"plan_context_parallel: attn_bias is {what}, expected {expected}.  Fix: {fix}.")

    if attn_bias is None:
        return -1, -1, []
    expected = "None, a band, or packed sequences whose keys are their queries"
    if not isinstance(attn_bias, AttentionBias):
        raise refuse(f"a {type(attn_bias).__name__}", expected, "say it as a band, or use one device")
    lowered = _lowered(torch.empty(0), attn_bias)
    if any(value is not None for value in (lowered.scores, lowered.seqused_k, lowered.page_table, lowered.block_keys)):
        raise refuse(f"a {type(attn_bias).__name__}", expected, "say it as a band, or use one device")
    if lowered.cu_seqlens_q is None:
        return lowered.window_left, lowered.window_right, []
    offsets = list(attn_bias.q_seqinfo.seqstart_py)  # type: ignore[attr-defined]
    if offsets != list(attn_bias.k_seqinfo.seqstart_py):  # type: ignore[attr-defined]
        raise refuse("packed with other lengths of keys than of queries", expected, "pack keys as queries")
    if offsets[-1] != seqlen:
        raise refuse(f"of {offsets[-1]} tokens", f"{seqlen}, seqlen", "pass the number of all packed tokens")
    return lowered.window_left, lowered.window_right, offsets


def shard(x: torch.Tensor, plan: ContextParallelPlan, dim: int = 1) -> torch.Tensor:
    """This rank's tokens, in the order of `plan.positions`, of a tensor that all ranks have. Backward: `unshard`."""
    return torch.ops.xformers.context_shard(x, plan.problem, plan.group_name, dim)


def unshard(x: torch.Tensor, plan: ContextParallelPlan, dim: int = 1) -> torch.Tensor:
    """All tokens, in the order of the sequence, from those of each rank. Backward: `shard`."""
    return torch.ops.xformers.context_unshard(x, plan.problem, plan.group_name, dim)


def context_parallel_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    plan: ContextParallelPlan,
) -> torch.Tensor:
    """Attention of this rank's queries to the keys of all ranks, under the bias that the plan was made for.

    query, key, value: this rank's tokens, [batch, local seqlen, heads, head_dim], or with [groups, heads] for heads,
    where `expand`ed key and value heads travel once. The result and all gradients are this rank's rows of those of
    `memory_efficient_attention` on the whole sequence; gradients of keys are added up over ranks in fp32. attn_bias, p:
    a tensor and dropout are refused (NotImplementedError), since a plan does not spread them.
    """
    return context_parallel_attention_with_lse(query, key, value, attn_bias, p, scale, plan=plan)[0]


def context_parallel_attention_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    plan: ContextParallelPlan,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`context_parallel_attention`, and the natural log-sum-exp, [batch, (groups,) heads, local seqlen]."""
    for name, given, none in (("attn_bias", attn_bias is not None, "None"), ("p", p != 0.0, "0.0")):
        if given:
            raise NotImplementedError(
                f"context_parallel_attention: {name} is given, expected {none}.  "
                "Fix: a band or packed sequences are part of the plan; tensors and dropout need one device."
            )
    return torch.ops.xformers.context_parallel_attention(query, key, value, plan.problem, plan.group_name, scale)


__all__ = [
    "ContextParallelPlan",
    "context_parallel_attention",
    "context_parallel_attention_with_lse",
    "plan_context_parallel",
    "shard",
    "unshard",
]
