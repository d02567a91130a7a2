#!/usr/bin/env python3
"""Says which CUDA kernels of two builds have the same machine code, byte for byte.

    scripts/compare_kernels.py before.cubin after.cubin     # nvcc -cubin, or cuobjdump -xelf all library.so

Takes two files or two folders of files with the same names. Kernels are matched by their names; -v lists all of them.
Exit status 1 if one that is on both sides differs.
"""

import argparse
import pathlib
import struct
import sys


def kernels(path: pathlib.Path) -> dict[str, bytes]:
    """Code of each kernel of an ELF file of the GPU."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF":
        raise SystemExit(f"{path} is no ELF file: nvcc -cubin and cuobjdump -xelf write them")
    offset, size, count, names_at = struct.unpack_from("<Q10xHHH", data, 0x28)
    sections = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    names = sections[names_at][4]
    result = {}
    for name, _, _, _, start, length in sections:
        end = data.index(b"\0", names + name)
        text = data[names + name : end].decode()
        if text.startswith(".text."):
            result[text.removeprefix(".text.")] = data[start : start + length]
    return result


def files(before: pathlib.Path, after: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    if before.is_file():
        return [(before, after)]
    return [(each, after / each.name) for each in sorted(before.glob("*.cubin")) if (after / each.name).exists()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path)
    parser.add_argument("after", type=pathlib.Path)
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    same = different = only = 0
    for first, second in files(args.before, args.after):
        old, new = kernels(first), kernels(second)
        for name in sorted(old.keys() | new.keys()):
            if name not in old or name not in new:
                only += 1
                print(f"only {'after' if name in new else 'before'}: {name}")
            elif old[name] == new[name]:
                same += 1
                if args.verbose:
                    print(f"same: {name}")
            else:
                different += 1
                print(f"differs ({len(old[name])} -> {len(new[name])} bytes): {name}")
    print(f"{same} kernels have the same code, {different} differ, {only} are on one side only")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
