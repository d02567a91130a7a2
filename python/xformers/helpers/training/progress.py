"""How far a run is."""

import sys
import time


class Progress:
    """A bar on a terminal, elsewhere a line every ten seconds; on standard error, so that results can be piped."""

    WIDTH = 24

    def __init__(self, total: int, done: int = 0):
        self._total, self._first = total, done
        self._started = self._shown = time.monotonic()
        self._bar = sys.stderr.isatty()

    def show(self, done: int, text: str) -> None:
        """`done` of the total, and what there is to say about it."""
        now = time.monotonic()
        if now - self._shown < (0.1 if self._bar else 10) and (done < self._total or not self._bar):
            return
        self._shown = now
        left = (now - self._started) / max(done - self._first, 1) * (self._total - done)
        line = f"{done}/{self._total}  {text}  {left:.0f} s left"
        if self._bar:
            filled = self.WIDTH * done // max(self._total, 1)
            line = f"\r\033[K[{'#' * filled}{'.' * (self.WIDTH - filled)}] {line}"
        print(line, end="" if self._bar else "\n", file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        """A line of its own, on standard output."""
        if self._bar:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        print(text, flush=True)
