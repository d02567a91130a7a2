"""Factors of the learning rate along a run, by the share of it that is done."""

import math
from collections.abc import Callable


def warmup_cosine(warmup: float, least: float = 0.0, first: float = 0.0) -> Callable[[float], float]:
    """Up from `first` to 1 over the share `warmup` of the run, then down half a cosine to `least`."""

    def factor(done: float) -> float:
        if done < warmup:
            return max(first, done / warmup)
        along = (done - warmup) / max(1 - warmup, 1e-9)
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(along, 1)))

    return factor


def one_cycle_linear(warmup: float, start: float = 1 / 25, end: float = 1 / 25e4) -> Callable[[float], float]:
    """Up from `start` to 1 over the share `warmup` of the run, then down to `end`, both linearly ("Super-Convergence",
    Smith and Topin, arXiv:1708.07120; the numbers are those of torch.optim.lr_scheduler.OneCycleLR)."""

    def factor(done: float) -> float:
        if done < warmup:
            return start + (1 - start) * done / warmup
        return 1 + (end - 1) * min((done - warmup) / max(1 - warmup, 1e-9), 1)

    return factor
