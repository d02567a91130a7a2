"""Texts that a rule writes, of which the entropy is known: no model can be better, and a good one comes near."""

import math

import numpy as np
import torch


def _entropy(p: np.ndarray) -> np.ndarray:
    """In bits, of the distributions along the last dimension."""
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def _stationary(transition: np.ndarray) -> np.ndarray:
    """Where a chain with these probabilities [from, to] is in the long run."""
    count = len(transition)
    equations = np.vstack([transition.T - np.eye(count), np.ones(count)])
    return np.linalg.lstsq(equations, np.append(np.zeros(count), 1), rcond=None)[0]


class Markov:
    """Every letter depends on the three before it, by probabilities drawn once."""

    LETTERS, ORDER = 6, 3

    def __init__(self, seed: int):
        states = self.LETTERS**self.ORDER
        self._next = np.random.default_rng(seed).dirichlet(np.full(self.LETTERS, 0.4), states)
        transition = np.zeros((states, states))
        for state in range(states):
            shifted = state * self.LETTERS % states
            transition[state, shifted : shifted + self.LETTERS] = self._next[state]
        self.bits_per_byte = float(_stationary(transition) @ _entropy(self._next))

    def write(self, size: int, seed: int) -> torch.Tensor:
        """uint8 [size]"""
        drawn = np.random.default_rng(seed + 1).random(size)
        cumulative = self._next.cumsum(1)[:, :-1].tolist()
        states, state, out = self.LETTERS**self.ORDER, 0, bytearray(size)
        for i, u in enumerate(drawn.tolist()):
            letter = sum(u >= edge for edge in cumulative[state])
            out[i] = 97 + letter
            state = (state * self.LETTERS + letter) % states
        return torch.frombuffer(out, dtype=torch.uint8)


class Brackets:
    """Lines of balanced brackets of three kinds, up to DEEPEST deep: which one closes has to be remembered."""

    DEEPEST, P_END, P_OPEN = 6, 0.5, 0.4
    OPEN, CLOSE = b"([{", b")]}"

    def __init__(self) -> None:
        # By depth: 0 opens or ends the line (an empty line too), the deepest closes, the others do either.
        opens = np.array([1 - self.P_END] + [self.P_OPEN] * (self.DEEPEST - 1) + [0.0])
        transition = np.zeros((self.DEEPEST + 1, self.DEEPEST + 1))
        for depth, p in enumerate(opens):
            if depth < self.DEEPEST:
                transition[depth, depth + 1] = p
            transition[depth, max(depth - 1, 0)] += 1 - p
        choices = _entropy(np.stack([opens, 1 - opens], 1)) + opens * math.log2(len(self.OPEN))
        self.bits_per_byte = float(_stationary(transition) @ choices)

    def write(self, size: int, seed: int) -> torch.Tensor:
        """uint8 [size]"""
        random = np.random.default_rng(seed)
        drawn, kinds = random.random(size).tolist(), random.integers(0, 3, size).tolist()
        out, open_now = bytearray(size), []
        for i, (u, kind) in enumerate(zip(drawn, kinds, strict=True)):
            depth = len(open_now)
            p = 1 - self.P_END if depth == 0 else 0 if depth == self.DEEPEST else self.P_OPEN
            if u < p:
                open_now.append(kind)
                out[i] = self.OPEN[kind]
            else:
                out[i] = self.CLOSE[open_now.pop()] if open_now else 10
        return torch.frombuffer(out, dtype=torch.uint8)

    def balanced(self, line: bytes) -> bool:
        open_now: list[int] = []
        for byte in line:
            if byte in self.OPEN:
                open_now.append(self.OPEN.index(byte))
            elif byte not in self.CLOSE or not open_now or open_now.pop() != self.CLOSE.index(byte):
                return False
        return not open_now
