"""Clock and power of the GPU while rows are measured: power sets the clock, and the clock every rate."""

import atexit
import shutil
import statistics
import subprocess
import threading
import time

EVERY_MS = 20


class Meter:
    """Reads nvidia-smi in the background; without one, or where `dry`, there are no numbers."""

    def __init__(self, dry: bool = False):
        self._samples: list[tuple[float, float, float]] = []  # time, MHz, W
        if dry or not shutil.which("nvidia-smi"):
            return
        query = [
            "--query-gpu=clocks.sm,power.draw.instant",
            "--format=csv,noheader,nounits",
            f"-lms={EVERY_MS}",
            "-i=0",
        ]
        process = subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        atexit.register(process.kill)
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def _read(self, lines):
        for line in lines:
            try:
                mhz, watts = (float(number) for number in line.split(","))
            except ValueError:  # "[N/A]"
                continue
            self._samples.append((self.now(), mhz, watts))

    @staticmethod
    def now() -> float:
        return time.perf_counter()

    def since(self, begin: float) -> dict[str, float]:
        """Medians of mhz and watts from then on; nothing where no sample was taken."""
        samples = [sample[1:] for sample in self._samples if sample[0] >= begin]
        return (
            dict(zip(("mhz", "watts"), map(statistics.median, zip(*samples, strict=True)), strict=True))
            if samples
            else {}
        )
