"""The golden examples of tests/cases/attn_bias_examples.json, which the C++ tests read too: how a bias is built, and
which keys (columns) every query (row) sees, written down by rules that know nothing of the library."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from xformers.ops.fmha import attn_bias as ab

FILE = Path(__file__).parents[1] / "cases" / "attn_bias_examples.json"

# A table that examples of pages use, and the lengths beside it.
Q, USED = [3, 1, 4, 2], [5, 0, 6, 1]
TABLES = torch.tensor([[4, 0, 9], [2, 12, 3], [7, 8, 1], [5, 10, 6]], dtype=torch.int32)
PAGED_STARTS = [1, 0, 3, 2]


@dataclass
class Case:
    build: Callable[..., ab.AttentionBias | None]  # takes device=
    queries: int
    keys: int  # columns to materialize
    seen: torch.Tensor  # booleans [queries, rows of key and value]: for keys in pages, those that the pages are
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        return self.seen.shape[1]

    def dense(self) -> torch.Tensor:
        """[queries, columns] of 0 and -inf."""
        return torch.zeros(self.seen.shape).masked_fill_(~self.seen, -torch.inf)


def build(name: str, arguments: dict[str, Any], device: Any = None) -> ab.AttentionBias:
    """The bias of an example."""
    cls, arguments = getattr(ab, name.split(",")[0]), dict(arguments)
    if "layout" in arguments:
        mask = cls(torch.tensor(arguments["layout"]), arguments["block_size"], device=device)
        band = {None: lambda: mask, "causal": mask.make_causal, "causal_br": mask.make_causal_from_bottomright}
        return band[arguments.get("band")]()
    if "bias" in arguments:
        return cls(torch.tensor(arguments["bias"]))
    if "q_seqlen" not in arguments:
        return cls(**{"_window_size" if key == "window_size" else key: value for key, value in arguments.items()})
    if "block_tables" in arguments:
        arguments["block_tables"] = torch.tensor(arguments["block_tables"], dtype=torch.int32, device=device or "cpu")
    if "window_size" in arguments and issubclass(cls, ab.BlockDiagonalMask):
        window_size = arguments.pop("window_size")
        blocks = ab.BlockDiagonalMask.from_seqlens(**arguments, device=device)
        return cls(blocks.q_seqinfo, blocks.k_seqinfo, _window_size=window_size)
    return cls.from_seqlens(**arguments, device=device)


def case_of(example: dict[str, Any]) -> Case:
    name, arguments = example["name"], example["arguments"]
    seen = torch.tensor([[cell == "x" for cell in row] for row in example["rows"]])
    return Case(lambda device=None: build(name, arguments, device), *example["shape"], seen, arguments)


_examples = json.loads(FILE.read_text())
EXAMPLES = {example["name"]: case_of(example) for example in _examples}
# bias -> who takes it of cutlass, flash, flash3, triton_splitk; F: forward, B: forward and backward, -: refused
OPERATORS = {example["name"]: example["operators"] for example in _examples if "operators" in example}
# Those that fit inputs of any batch and number of heads.
CASES = {name: case for name, case in EXAMPLES.items() if not name.startswith("LowerTriangularMaskWithTensorBias")}
