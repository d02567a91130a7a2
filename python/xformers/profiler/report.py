"""One page about a run: python -m xformers.profiler.report DIR"""

import argparse
from pathlib import Path

from .. import _profiler_library
from . import device_limits


def write_report(folder: str | Path) -> Path:
    """Writes report.html, one file that loads nothing, and report.json into the folder that holds the traces, one per
    rank, or their parent. Returns the page. ValueError where no trace can be read."""
    limits = [limit._row() for limit in device_limits._added]
    return Path(_profiler_library.call("report", folder=str(folder), limits=limits))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m xformers.profiler.report", description=__doc__)
    parser.add_argument("folder", help="the output_dir of a profile, or a folder with traces in it")
    print(write_report(parser.parse_args().folder))


if __name__ == "__main__":
    main()
