"""What `make docs` is made with: every public name is described, comments arrive whole, faults of a site are found."""

import subprocess
import sys
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[2] / "docs" / "site"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SITE))


def test_every_public_name_is_described(tmp_path):
    ran = subprocess.run([sys.executable, SITE / "public_names.py", tmp_path], capture_output=True, text=True)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "reference/python/xformers.ops.rst").read_text()
    assert "autofunction:: xformers.ops.rms_norm" not in page  # described once, where it is defined
    assert ":py:obj:`rms_norm <xformers.ops.rmsnorm.rms_norm>`" in page
    home = (tmp_path / "reference/python/xformers.ops.rmsnorm.rst").read_text()
    assert ".. autofunction:: xformers.ops.rmsnorm.rms_norm\n" in home


def test_a_name_without_a_text_is_found():
    import public_names

    class Bare:
        pass

    class Described:
        """What it is."""

    names = [public_names.Name("xformers", value.__name__, value) for value in (Bare, Described)]
    assert public_names.described({"xformers": names}) == (["xformers.Bare"], 2)


def test_comments_of_headers_become_doxygen_s():
    from header_filter import filtered

    header = """// What this is.
//
//   out = a * b
#pragma once

// Adds `x<y>` to the @rest.
int add(int x);

struct Options {
  int size = 0;    // how many,
                   // at most
};
constexpr Options kTwo = {.size = 2};"""
    lines = filtered(header, "xformers/add.h").split("\n")
    assert lines[0] == "/// @file xformers/add.h"
    assert "/// @verbatim" in lines and "/// out = a * b" in lines
    assert "/// Adds <tt>x\\<y\\></tt> to the \\@rest." in lines
    assert "  int size = 0;  ///< how many, at most" in lines
    assert lines[-1] == "constexpr Options kTwo;"


def test_docstrings_become_lists_and_literals():
    from prose import to_rst

    lines = to_rst("Takes *it* as x_.\n\nArguments:\n    a, b: of `one` size,\n        any.\n\nAs::\n\n    a @ b\n")
    assert lines[0] == "Takes \\*it\\* as x\\_."
    assert "- **a, b**: of \\ ``one``\\  size, any." in lines
    assert "    a @ b" in lines


PAGE = '<html><body><h1 id="top">x</h1><a href="other.html#there">x</a>{more}</body></html>'


@pytest.mark.parametrize(
    "more, fault",
    [
        ("", None),
        ('<a href="missing.html">x</a>', "links to missing.html"),
        ('<a href="other.html#nowhere">x</a>', "there is no such heading"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<img src="//cdn.example/x.png">', "loads //cdn.example/x.png"),
        ('<a href="https://example.org">x</a>', None),
    ],
)
def test_faults_of_a_site_are_found(tmp_path, more, fault):
    from check_site import faults

    (tmp_path / "index.html").write_text(PAGE.format(more=more))
    (tmp_path / "other.html").write_text('<a id="there"></a>')
    (tmp_path / "searchindex.js").write_text("")
    found, outside, pages = faults(tmp_path)
    assert pages == 2 and len(outside) == ("example.org" in more)
    assert (len(found) == 1 and fault in found[0]) if fault else not found
