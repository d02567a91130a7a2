"""One row of the table: the same call by several sides, on inputs that rotate so that no cache holds them."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

CACHE_BYTES = 128 * 2**20  # more than the L2 cache of any GPU


@dataclass
class Row:
    """`sides`: name -> calls, one per set of inputs. `work`: bytes, each input read and each output written once; or,
    for matrix products, operations."""

    name: str
    work: float
    sides: dict[str, list[Callable]]
    unit: str = "GB/s"  # or TFLOP/s
    graph: bool = True  # replayed from a CUDA graph; else single calls between events
    notes: dict[str, str] = field(default_factory=dict)  # of sides: what they need beside time

    def rate(self, microseconds: float) -> float:
        return self.work / microseconds / (1e3 if self.unit == "GB/s" else 1e6)


@dataclass
class Run:
    """`dry`: tiny sizes on the CPU, to try the script itself."""

    dry: bool = False
    compile: bool = True

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def size(self, number: int, small: int) -> int:
        return min(number, small) if self.dry else number

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def sets(self, make: Callable, bytes_each: float) -> list:
        """So many sets of inputs that one call's are out of the cache when its turn comes again."""
        return [make() for _ in range(1 if self.dry else max(2, min(64, int(2 * CACHE_BYTES / bytes_each) + 1)))]

    def compiled(self, function: Callable) -> dict[str, Callable]:
        if not self.compile or self.dry:
            return {}
        torch._dynamo.config.recompile_limit = 64
        return {"compile": torch.compile(function, dynamic=False)}

    def microseconds(self, row: Row) -> dict[str, float | str]:
        """Median per call of each side, or why it has none. Sides take turns."""
        plays, failed = {}, {}
        for name, calls in row.sides.items():
            try:
                plays[name] = self._player(calls, row.graph)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                failed[name] = str(error).strip().split("\n")[0][:120]
        samples = {name: [] for name in plays}
        for _ in range(1 if self.dry else 9):
            for name, play in plays.items():
                samples[name].append(play())
        return {name: statistics.median(samples[name]) if name in samples else failed[name] for name in row.sides}

    def _player(self, calls: list[Callable], graph: bool) -> Callable[[], float]:
        for call in calls:
            call()
        if self.dry:
            return lambda: 1.0
        replay = self._captured(calls) if graph else lambda: [call() for call in calls]

        def timed(repeats: int) -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(repeats):
                replay()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e3 / repeats

        timed(1)
        repeats = max(1, int(1000 / timed(1)))  # a millisecond, so that the gaps around it count little
        return lambda: timed(repeats) / len(calls)

    @staticmethod
    def _captured(calls: list[Callable]) -> Callable:
        stream = torch.cuda.current_stream()  # the one that forwards ran on: their backward follows them there
        for call in calls:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = [call() for call in calls]  # all alive: each call writes memory of its own
        torch.cuda.synchronize()

        def replay(results=results):
            graph.replay()

        return replay


def copy_row(run: Run) -> Row:
    """What memory can do at best in this run."""
    elements = run.size(2**27, 2**10)
    pairs = run.sets(lambda: (run.randn(elements), run.randn(elements)), 4.0 * elements)
    return Row("copy", 4.0 * elements, {"copy": [lambda a=a, b=b: b.copy_(a) for a, b in pairs]})


Rows = Callable[[Run], Iterator[Row]]
