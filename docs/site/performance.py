"""performance.py <page>   adds the tables of benchmarks/results to a staged page, newest first."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"


def table(columns, rows):
    """A Markdown table; numbers with three digits."""

    def cell(value):
        return (
            ""
            if value is None
            else f"{value:.3g}"
            if isinstance(value, float) and value < 1000
            else f"{value:.0f}"
            if isinstance(value, float)
            else str(value)
        )

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows]) + "\n"


def attention_cpu(result):
    columns = ["case", "ours ms", "GFLOP/s", "of GEMM", "rival", "over the rival", "kernel"]
    for row in result["rows"]:
        sides = {side["name"]: side["median_s"] for side in row["sides"]}
        rival = row.get("rival")
        gain = sides[rival] / sides["ours"] if rival in sides else None
        yield (
            columns,
            (row["name"], sides["ours"] * 1e3, row.get("gflops"), row.get("of_gemm"), rival, gain, row.get("kernel")),
        )


def attention_cuda(result):
    columns = ["case", "dtype", "forward TFLOP/s", "over the best rival", "backward TFLOP/s", "over the best rival"]
    for row in result["rows"]:
        cells = []
        for direction in ("forward", "backward"):
            sides = _sides(row, direction)
            rivals = [ms for side, (ms, _) in sides.items() if side not in ("xformers", "dense") and ms]
            ms, rate = sides.get("xformers", (None, None))
            cells += [rate, min(rivals) / ms if rivals and ms else None]
        if any(cell is not None for cell in cells):
            yield (
                columns,
                (row["case"], {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(row.get("dtype")), *cells),
            )


def _sides(row, direction):
    """(milliseconds, TFLOP/s) of each side, in either form that files have."""
    found = {}
    for side, values in (row.get(direction) or row).items():
        if isinstance(values, dict):
            ms = values.get("ms", values.get(f"{direction}_ms"))
            found[side] = (ms, values.get("tflops", values.get(f"{direction}_tflops")))
    return found


def blocks_cpu(result):
    columns = ["case", "ours ms", "GB/s", "of a copy", "over eager PyTorch"]
    for row in result["rows"]:
        ours = row["sides"]["ours"]["median"] * 1e3
        yield (
            columns,
            (row["name"], ours, row.get("gigabytes_per_second"), row.get("of_copy"), row.get("speedup_over_eager")),
        )


def blocks_cuda(result):
    columns = ["case", "ours us", "rate", "unit", "over eager PyTorch", "over torch.compile"]
    for row in result["rows"]:
        sides = {name: side["microseconds"] for name, side in row["sides"].items() if side.get("microseconds")}
        if "ours" in sides:
            gains = [sides[rival] / sides["ours"] if rival in sides else None for rival in ("eager", "compile")]
            yield columns, (row["row"], sides["ours"], row["sides"]["ours"].get("rate"), row["unit"], *gains)


KINDS = {
    "attention-cpu": attention_cpu,
    "attention-cuda": attention_cuda,
    "blocks-cpu": blocks_cpu,
    "blocks-cuda": blocks_cuda,
    "decode-cpu": attention_cpu,
}


def kind_of(path):
    return next((read for start, read in KINDS.items() if path.name.startswith(start)), None)


def sections():
    """Markdown of every file that has rows of times."""
    found = []
    for path in RESULTS.glob("*.json"):
        if read := kind_of(path):
            result = json.loads(path.read_text())
            machine = result.get("machine", {})
            name = result.get("gpu") or result.get("device") or machine.get("cpu")
            date = (result.get("date") or machine.get("date"))[:10]
            rows = list(read(result))
            torch = result.get("torch") or machine.get("torch")
            head = f"## {path.stem}\n\n{name}, {date}, torch {torch}, commit {result['commit']}.\n"
            found.append((date, path.name, head + "\n" + table(rows[0][0], [row for _, row in rows])))
    return "\n".join(text for _, _, text in sorted(found, reverse=True))


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(page.read_text() + "\n" + sections())
