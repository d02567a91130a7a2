"""MixtureOfExperts, two experts a token, against the one-hot formula and a dense MLP on twice the tokens."""

import torch
from torch import nn

from xformers.components.feedforward import MLP, MixtureOfExperts
from xformers.helpers.training import program

from ._sides import bytes_kept, parser_of, report_of, seconds_of, training_step

# tokens, width, hidden width, experts
CPU_SHAPES = [(4096, 512, 2048, 8)]
CUDA_SHAPES = [(16384, 2048, 8192, 8), (16384, 2048, 1024, 64)]


class OneHot(nn.Module):
    """GShard's formula in PyTorch, on the same weights and without its noise: tokens times a tensor `[T, E, C]` of
    zeros and ones."""

    def __init__(self, layer: MixtureOfExperts):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moe = self.layer.moe
        tokens, experts = x.flatten(0, 1), moe.num_experts
        capacity = 2 * len(tokens) // experts
        weight: torch.Tensor = moe.gate.get_parameter("wg.weight")
        gates = nn.functional.linear(tokens, weight).float().softmax(-1)
        best = gates.topk(2, -1)
        combine = gates.new_zeros(len(tokens), experts, capacity)
        taken = torch.zeros(experts, dtype=torch.long, device=x.device)
        for choice in range(2):
            mask = nn.functional.one_hot(best.indices[:, choice], experts)
            place = (mask.cumsum(0) - 1 + taken) * mask
            taken = taken + mask.sum(0)
            mask = mask * (place < capacity)
            where = nn.functional.one_hot(place.clamp(max=capacity - 1), capacity) * mask.unsqueeze(-1)
            combine = combine + best.values[:, choice, None, None] * where
        combine = (combine / best.values.sum(-1)[:, None, None]).to(x.dtype)
        rows = torch.einsum("tec,td->ecd", (combine > 0).to(x.dtype), tokens)
        done = torch.stack([expert(part) for expert, part in zip(moe.experts, rows, strict=True)])
        return torch.einsum("tec,ecd->td", combine, done).view_as(x)


def layers(dim: int, hidden: int, experts: int, activation: str) -> tuple[MixtureOfExperts, MLP]:
    """Two experts of each token, which drop what is over an even share, and one expert alone."""

    def expert() -> MLP:
        made = MLP(dim, 0.0, activation)
        made.mlp[0], made.mlp[3] = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        return made

    return MixtureOfExperts(dim, 0.0, activation, experts, "top_2", expert_constructor=expert), expert()


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--one_hot", action="store_true", help="on a GPU too, where its tensors take gigabytes")
    options = parser.parse_args(arguments)
    on_gpu = torch.device(options.device).type == "cuda"
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for shape in [(64, 16, 32, 4)] if options.smoke else CUDA_SHAPES if on_gpu else CPU_SHAPES:
            tokens, dim, hidden, experts = shape
            x, twice = (torch.randn(1, n, dim, requires_grad=True, **factory) for n in (tokens, 2 * tokens))
            layer, dense = layers(dim, hidden, experts, options.activation)
            layer, dense = layer.to(**factory), dense.to(**factory)
            sides: dict[str, tuple[nn.Module, torch.Tensor]] = {
                "ours": (layer, x),
                "dense, twice the tokens": (dense, twice),
            }
            if options.one_hot or not on_gpu:
                sides["one-hot formula"] = OneHot(layer), x
            times = seconds_of({name: training_step(*side) for name, side in sides.items()}, options.samples)
            kept = {name: bytes_kept(*side) for name, side in sides.items()}
            report.row(f"{tokens} tokens of {dim}, {experts} experts of {hidden}", times, kept)


if __name__ == "__main__":
    program(main)
