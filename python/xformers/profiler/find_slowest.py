"""Which kernels and ranks are slow: python -m xformers.profiler.find_slowest DIR"""

import argparse
from pathlib import Path

from .. import _profiler_library


def print_profiling_info(cuda_profile_dir: str | Path) -> None:
    """Prints the three traces that are longest and shortest in communication, the kernels whose time differs most
    between ranks, and who arrives last at collectives. ValueError for a folder without traces."""
    print(_profiler_library.call("find_slowest", folder=str(cuda_profile_dir))["text"], end="")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m xformers.profiler.find_slowest", description=__doc__)
    parser.add_argument("folder", help="a folder with a trace per rank: *trace.json.gz, else *.json")
    print_profiling_info(parser.parse_args().folder)


if __name__ == "__main__":
    main()
