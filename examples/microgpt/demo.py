"""Trains microgpt for a while, compares several attentions and draws both: what `make demo` runs."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ATTENTIONS = {
    "ours": "xformers",
    "sdpa": "PyTorch SDPA",
    "flash": "PyTorch flash",
    "cudnn": "PyTorch cuDNN",
    "efficient": "PyTorch efficient",
    "vanilla": "plain formula",
}
COLORS = {"ours": "#0b6e4f", "vanilla": "#c8ced4"}
OTHER_COLOR = "#7f8c99"


def run(program: Path, *arguments: object) -> None:
    """Runs a subcommand of microgpt; its output goes to the terminal. Ends the demo if it fails or is interrupted."""
    try:
        code = subprocess.run([program, *map(str, arguments)], check=False).returncode
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        sys.exit(f"demo: cannot run {program}: {error.strerror}.  Fix: build it with make demo")
    if code != 0:
        sys.exit(code if code > 0 else 128 - code)


def draw_training(axes: plt.Axes, report: dict) -> None:
    """Loss over time, with the baseline that has to be beaten."""
    for name, style in (("train", {"alpha": 0.35, "linewidth": 1}), ("validation", {"marker": "o", "markersize": 4})):
        points = report[name]
        axes.plot(
            [p["seconds"] for p in points],
            [p["bits_per_byte"] for p in points],
            color=COLORS["ours"],
            label=name,
            **style,
        )
    bigram = report["bigram_bits_per_byte"]
    axes.axhline(bigram, color="#b3541e", linestyle="--", label=f"bigram: {bigram:.2f}")
    axes.annotate(
        f"{report['validation_bits_per_byte']:.2f}",
        (report["seconds"], report["validation_bits_per_byte"]),
        xytext=(0, -16),
        textcoords="offset points",
        ha="center",
        color=COLORS["ours"],
    )
    parameters, megabytes = report["model"]["parameters"] / 1e6, report["text"]["train_bytes"] / 1e6
    axes.set(
        xlabel="seconds",
        ylabel="bits per byte",
        ylim=(0, None),
        title=f"{parameters:.1f} M parameters learn {megabytes:.1f} MB of text\n({report['threads']} threads)",
    )
    axes.legend(frameon=False)


def draw_bars(axes: plt.Axes, rows: list[dict], values: list[float], title: str, unit: str) -> None:
    """One bar for each attention."""
    bars = axes.barh(
        [ATTENTIONS[row["attention"]] for row in rows],
        values,
        color=[COLORS.get(row["attention"], OTHER_COLOR) for row in rows],
    )
    axes.bar_label(bars, labels=[f" {value:,.0f} {unit}" for value in values])
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.spines["bottom"].set_visible(False)
    axes.set(title=title, xticks=[])


def draw(train: dict, compare: dict, picture: Path) -> None:
    """The loss curve beside the comparison."""
    figure = plt.figure(figsize=(11, 4.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.2, 1))
    draw_training(figure.add_subplot(grid[:, 0]), train)
    rows = compare["rows"]
    time = figure.add_subplot(grid[0, 1])
    memory = figure.add_subplot(grid[1, 1])
    draw_bars(
        time, rows, [1e3 * row["median_seconds"] for row in rows], f"time per step, length {compare['seqlen']}", "ms"
    )
    draw_bars(memory, rows, [row["steps_bytes"] / 2**20 for row in rows], "memory that the steps take", "MiB")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--build-dir", type=Path, default=Path("build/release"), help="where the library was built")
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder for checkpoint, reports and picture"
    )
    parser.add_argument("--max-seconds", type=float, default=100, help="time for training")
    parser.add_argument(
        "--text", nargs="+", help="files and folders to learn from instead of Python's standard library"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the model computes")
    options = parser.parse_args()

    program = options.build_dir.resolve() / "bin" / "microgpt"
    options.out.mkdir(parents=True, exist_ok=True)
    train, compare = options.out / "train.json", options.out / "compare.json"
    device = ["--device", options.device]
    text = ["--python", sys.executable] if options.text is None else ["--text", *options.text]

    print(f"Training a small GPT for {options.max_seconds:.0f} seconds; its attention is xformers'.", flush=True)
    checkpoint = options.out / "model.ckpt"
    run(
        program,
        "train",
        "--max-seconds",
        options.max_seconds,
        "--checkpoint",
        checkpoint,
        "--overwrite",
        "--report",
        train,
        *text,
        *device,
    )
    print("\nSeveral attentions, the same model:", flush=True)
    run(program, "compare", "--report", compare, *text, *device)
    if json.loads(compare.read_text())["device"] == "cuda":  # where 16384 is no matter of minutes
        run(program, "compare", "--seqlen", 16384, "--report", compare, *text, *device)

    picture = options.out / "microgpt.png"
    draw(json.loads(train.read_text()), json.loads(compare.read_text()), picture)
    print(f"\npicture:  {picture}\nmodel:    {checkpoint}  (write more: {program} sample --checkpoint {checkpoint})")


if __name__ == "__main__":
    main()
