"""Device time, host time, memory, and the GEMM and copy rates of the run; --dry: the same calls in small on the CPU."""

import statistics
import time
from collections.abc import Callable

import torch

from attention_cuda.meter import Meter

FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any GPU


class Bench:
    """Where and how long to measure. `dry`: tiny sizes on the CPU, to try the script itself."""

    def __init__(self, dry: bool = False, budget_ms: float = 60.0):
        self.dry, self.budget_ms = dry, budget_ms
        self.device = "cpu" if dry else "cuda"
        self.meter = Meter(dry)
        self._flush = torch.empty(4096 if dry else FLUSH_BYTES, dtype=torch.uint8, device=self.device)

    def size(self, number: int, small: int) -> int:
        return min(number, small) if self.dry else number

    def randn(self, *shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def times_ms(self, fn: Callable, repeats: int) -> list[float]:
        """Device times of single calls, the L2 cache flushed before each; the host runs ahead of the device."""
        if self.dry:
            begin = time.perf_counter()
            fn()
            return [1e3 * (time.perf_counter() - begin)]
        events = []
        for _ in range(8):  # work for the device while the host gets ahead
            self._flush.zero_()
        for _ in range(repeats):
            self._flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            fn()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    def medians_ms(self, sides: dict[str, Callable]) -> dict[str, float | str]:
        """Median of each side, measured in three turns; a text where a side can't run this."""
        samples, repeats, failed = {}, {}, {}
        for name, fn in sides.items():
            try:
                fn()
                once = min(self.times_ms(fn, 2))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                failed[name] = str(error).strip().split("\n")[0][:120]
                if not self.dry:
                    torch.cuda.empty_cache()
                continue
            samples[name] = []
            repeats[name] = max(2, min(8, int(self.budget_ms / 3 / max(once, 1e-3))))
        for _ in range(3):
            for name in samples:
                samples[name] += self.times_ms(sides[name], repeats[name])
        return {name: statistics.median(samples[name]) if name in samples else failed[name] for name in sides}

    def graph_ms(self, fn: Callable) -> float:
        """Time of a call inside a CUDA graph of ten: nothing of the host is left in it. No flush between them."""
        if self.dry:
            return self.times_ms(fn, 1)[0]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            fn()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(10):
                fn()
        return self.medians_ms({"graph": graph.replay})["graph"] / 10

    def host_us(self, fn: Callable, calls: int = 1000) -> float:
        """Host time of a call whose device work is negligible, from Python to the launch: the best of three runs."""
        calls = self.size(calls, 20)
        best = float("inf")
        fn()
        for _ in range(3):
            self.wait()
            begin = time.perf_counter()
            for _ in range(calls):
                fn()
            best = min(best, time.perf_counter() - begin)
        self.wait()
        return 1e6 * best / calls

    def wait(self):
        if not self.dry:
            torch.cuda.synchronize()

    def extra_bytes(self, fn: Callable) -> int:
        """Most memory that a call holds beyond what was there before and what it returns."""
        if self.dry:
            fn()
            return 0
        fn()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = fn()
        torch.cuda.synchronize()
        peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        del result
        return peak - max(after, before)

    def gemm_tflops(self, dtype) -> float:
        n = self.size(8192, 64)
        a, b = self.randn(n, n, dtype=dtype), self.randn(n, n, dtype=dtype)
        return 2 * n**3 / self.medians_ms({"gemm": lambda: a @ b})["gemm"] / 1e9

    def copy_gb_per_s(self) -> float:
        """Read and written, of a copy that no cache holds."""
        a = torch.empty(self.size(2**30, 2**12), dtype=torch.uint8, device=self.device)
        b = torch.empty_like(a)
        return 2 * a.numel() / self.medians_ms({"copy": lambda: b.copy_(a)})["copy"] / 1e6
