"""public_names.py <folder>   a page per public module of the Python package, and how many public names have an entry.

A name is public that stands in the `__all__` of a module without an underscore in its address. It is described once, in
the module that defines it where that one is public, else in the one with the shortest address; the others link there.
An entry is a docstring or, for a constant, the comment beside it.
"""

import ast
import importlib
import inspect
import pkgutil
import sys
import warnings
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import xformers


@dataclass
class Name:
    module: str
    name: str
    value: Any
    home: str = ""  # the module that describes it

    @property
    def address(self):
        return f"{self.module}.{self.name}"

    @property
    def kind(self):
        if isinstance(self.value, ModuleType):
            return "module"
        if inspect.isclass(self.value):
            return "exception" if issubclass(self.value, BaseException) else "class"
        return "function" if inspect.isroutine(self.value) else "data"

    @property
    def text(self):
        """Its docstring, a constant's comment; empty: there is none."""
        if self.kind == "data":
            return comment_of(sys.modules[self.module], self.name)
        if self.kind == "class":
            own = vars(self.value).get("__doc__") or ""
            made = is_dataclass(self.value) and own.startswith(
                f"{self.value.__name__}("
            )  # the signature, which says nothing
            return "" if made else own
        return inspect.getdoc(self.value) or ""


def comment_of(module, name):
    """The comment behind a module's assignment to `name`, or above it and its neighbours; also of an imported one."""
    lines = inspect.getsource(module).split("\n")
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.ImportFrom):
            comment = _imported_comment(module, node, name)
        elif name in _assigned(node):
            comment = lines[node.end_lineno - 1].partition("  # ")[2] or _comment_above(lines[: node.lineno - 1])
        else:
            continue
        if comment:
            return comment
    return ""


def _imported_comment(module, node, name):
    package = module.__name__ if hasattr(module, "__path__") else module.__package__
    for alias in node.names:
        if name == (alias.asname or alias.name) or alias.name == "*":
            source = importlib.import_module("." * node.level + (node.module or ""), package)
            original = name if alias.name == "*" else alias.name
            if hasattr(source, original) and not isinstance(getattr(source, original), ModuleType):
                return comment_of(source, original)
    return ""


def _assigned(node):
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _comment_above(lines):
    above = []
    for line in reversed(lines):
        if line.startswith("#"):
            above.insert(0, line.lstrip("#: "))
        elif above or not line.strip():  # one comment stands above the assignments that follow it
            break
    return "\n".join(above)


def modules():
    warnings.simplefilter("ignore")  # modules of old that say so
    yield xformers
    for found in pkgutil.walk_packages(xformers.__path__, "xformers."):
        parts = found.name.split(".")
        if not any(part.startswith(("_", "lib")) for part in parts):
            yield importlib.import_module(found.name)


def names():
    """Every public name, by module; each knows where it is described."""
    found = {}
    every = {module.__name__: module for module in modules()}
    listed = {address: module.__all__ for address, module in every.items() if getattr(module, "__all__", None)}
    # A module that stands in an __all__ and has none of its own: what it defines.
    for address, public in list(listed.items()):
        for name in public:
            part = getattr(every[address], name)
            if isinstance(part, ModuleType) and part.__name__ not in listed and part.__name__ in every:
                listed[part.__name__] = [
                    inner
                    for inner, value in vars(part).items()
                    if not inner.startswith("_") and getattr(value, "__module__", "") == part.__name__
                ]
    for address, public in listed.items():
        found[address] = [Name(address, name, getattr(every[address], name)) for name in sorted(public)]
    where = {}
    for module in sorted(found, key=lambda address: (address.count("."), address)):
        for name in found[module]:
            where.setdefault(_key(name), []).append(module)
    for entries in found.values():
        for name in entries:
            candidates = where[_key(name)]
            own = getattr(name.value, "__module__", None)
            name.home = own if own in candidates else candidates[0]
    return found


def _key(name):
    return (name.name, id(name.value))


def page(module, entries, shadowed):
    """reStructuredText of a module's page; shadowed: a function has the same address."""
    from prose import to_rst

    title = f"{module}"
    # No page of the reference is in the contents tree: that would be on every page.
    lines = [":orphan:", "", title, "=" * len(title), "", f".. py:module:: {module}"]
    lines += ["   :no-index:", ""] if shadowed else [""]
    lines += [*to_rst(sys.modules[module].__doc__ or ""), ""]
    elsewhere = [name for name in entries if name.home != module or name.kind == "module"]
    if elsewhere:
        lines += ["Also here, described elsewhere:", ""]
        for name in elsewhere:
            role, target = (
                ("mod", name.value.__name__) if name.kind == "module" else ("obj", f"{name.home}.{name.name}")
            )
            lines.append(f"- :py:{role}:`{name.name} <{target}>`")
        lines.append("")
    for name in entries:
        if name in elsewhere:
            continue
        if name.kind == "data":
            lines += [f".. py:data:: {name.name}", f"   :module: {module}", ""]
            lines += ["   " + line for line in to_rst(name.text)]
        else:
            lines += [f".. auto{name.kind}:: {name.address}", "   :members:" if name.kind == "class" else ""]
        lines.append("")
    return "\n".join(lines)


def described(found):
    """(addresses without an entry, number of names)"""
    flat = [name for entries in found.values() for name in entries]
    return [name.address for name in flat if not name.text.strip()], len(flat)


def write_pages(stage):
    folder = stage / "reference/python"
    folder.mkdir(parents=True, exist_ok=True)
    found = names()
    objects = {name.address for entries in found.values() for name in entries if name.kind != "module"}
    for module, entries in found.items():
        (folder / f"{module}.rst").write_text(page(module, entries, module in objects))
    listed = "\n".join(f"- :doc:`{module}`" for module in sorted(found))
    (folder / "index.rst").write_text(f"Python\n======\n\nEvery public name, by module.\n\n{listed}\n")
    missing, count = described(found)
    print(f"Python: {count - len(missing)} of {count} public names in {len(found)} modules have an entry")
    if missing:
        sys.exit("no docstring, no comment: " + ", ".join(missing))


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
