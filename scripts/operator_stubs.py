"""operator_stubs.py [--check]   python/xformers/operators.pyi from the schemas of the built library (on PYTHONPATH)."""

import re
import sys
from pathlib import Path

import torch

from xformers import operators

STUB = Path(__file__).parents[1] / "python/xformers/operators.pyi"
HEAD = '''"""Signatures of the library's operators, one a line. Written by scripts/operator_stubs.py: don't edit."""

# fmt: off
# ruff: noqa: E501
from collections.abc import Sequence

import torch
from torch import Tensor

'''
TYPES = {
    "Tensor": "Tensor",
    "int": "int",
    "SymInt": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "ScalarType": "torch.dtype",
    "Device": "torch.device | str",
    "Generator": "torch.Generator",
}


def python_type(schema, collection):
    """ "Tensor(a!)?" -> "Tensor | None"; lists are given as any sequence and returned as lists."""
    schema = re.sub(r"\(\w+!?\)", "", schema)
    if schema.endswith("?"):
        return f"{python_type(schema[:-1], collection)} | None"
    if schema.endswith("[]"):
        return f"{collection}[{python_type(schema[:-2], collection)}]"
    return TYPES[schema]


def split(text):
    """At commas outside of brackets."""
    return [part.strip() for part in re.split(r",(?![^\[(]*[\])])", text) if part.strip()]


def argument(text):
    if text == "*":
        return text
    kind, name = text.split(" ", 1)
    name, _, default = name.partition("=")
    default = {"[]": "()"}.get(default, default)
    if re.fullmatch(r"-?[\d.]+(e-?\d+)?", default) and kind.startswith("float"):
        default = repr(float(default))
    return f"{name}: {python_type(kind, 'Sequence')}" + (f" = {default}" if default else "")


def function(schema):
    name, arguments, results = re.fullmatch(r"\w+::(\w+)\((.*)\) -> (.*)", schema).groups()
    arguments = [argument(text) for text in split(arguments)]
    returned = split(results[1:-1]) if results.startswith("(") else [results]
    types = [python_type(text.split(" ")[0], "list") for text in returned]
    result = {0: "None", 1: "".join(types)}.get(len(types), f"tuple[{', '.join(types)}]")
    names = [text.split(" ")[1] for text in returned if " " in text]
    comment = f"  # {', '.join(names)}" if len(names) > 1 else ""
    return f"def {name}({', '.join(arguments)}) -> {result}: ...{comment}\n"


def stub():
    names = [name for name in dir(operators) if name != "why_not_cuda"]  # of builds with CUDA kernels alone
    return HEAD + "".join(function(str(torch._C._get_schema(f"xformers::{name}", ""))) for name in names)


if __name__ == "__main__":
    text = stub()
    if "--check" in sys.argv:
        sys.exit(0 if STUB.read_text() == text else f"{STUB} is not what the library has.  Fix: {sys.argv[0]}")
    STUB.write_text(text)
