"""xformers.benchmarks.utils: upstream's helpers for benchmarks of one's own."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.benchmark import Timer
from xformers.benchmarks import utils
from xformers.helpers.training import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XFORMERS_BENCHMARKS_CACHE", str(tmp_path))
    return tmp_path / "products"


def products(size):
    if size == 7:
        raise NotImplementedError("seven")

    def out_of_memory():
        raise torch.OutOfMemoryError("too large")

    x = torch.randn(size, size)
    for description, fn in (("ours", lambda: x @ x), ("eager", lambda: x @ x), ("huge", out_of_memory)):
        yield Timer("fn()", globals={"fn": fn}, label="product", sub_label=f"size {size}", description=description)


CASES = list(utils.product_dict(size=[300, 7]))


def run(**options):
    return utils.benchmark_run_and_compare(products, CASES, quick=True, **options)


def test_rows_and_what_is_skipped(capsys):
    rows = run()
    assert [row["description"] for row in rows] == ["ours", "eager"] and all(row["seconds"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "skipped, seven" in printed and "huge: skipped, out of memory" in printed
    assert [row["description"] for row in run(omit_baselines=True)] == ["ours"]
    with pytest.raises(UserError, match="nothing was measured"):
        utils.benchmark_run_and_compare(products, [{"size": 7}], quick=True)


def test_stored_and_compared(cache, capsys):
    run(store_results_label="main")
    (stored,) = cache.glob("main.*.csv")
    assert (cache / "runtime.png").stat().st_size > 1000 and (cache / "mem.png").exists()
    lines = stored.read_text().splitlines()

    def scaled(factor):
        def one(line):
            cells = line.rsplit(",", 3)
            return ",".join([cells[0], str(float(cells[1]) * factor), "0", cells[3]])

        stored.write_text("\n".join([lines[0], *map(one, lines[1:])]))

    scaled(1e4)
    run(compare=["main"], fail_if_regression=True)
    with pytest.raises(SystemExit):
        scaled(1e-12)
        run(compare=["main"], fail_if_regression=True)
    assert "slower: product size 300 ours" in capsys.readouterr().out
    with pytest.raises(UserError, match="a label that is there: main"):
        run(compare=["other"])
    with pytest.raises(UserError, match="without dots"):
        run(store_results_label="v0.1")


def test_main_helpers(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--fn", "another"])
    utils.benchmark_main_helper(products, CASES)
    assert "left out" in capsys.readouterr().out

    class Product:
        label, sub_label = "product", "4"

        def __init__(self, size, bw):
            if size != 4:
                raise utils.NotSupportedInputError
            self.x = torch.randn(size, size, requires_grad=True)

        def fw(self):
            self.out = self.x @ self.x

        def bw(self):
            self.out.sum().backward()

    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    cases = utils.product_dict(size=[4, 5])
    utils.benchmark_main_helper2("classes", {"ours": Product}, fw=True, bw=True, cuda_graph=False, cases=cases)
    assert capsys.readouterr().out.count("product fw bw 4 ours") == 1


def test_small_helpers(tmp_path, capsys):
    assert list(utils.product_dict(a=[1, 2], b=[3])) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    with utils.temp_files_ctx(2) as names:
        assert len(set(names)) == 2 and all(Path(name).exists() for name in names)
    assert not any(Path(name).exists() for name in names)
    utils.rmf(names[0])
    results = {"8": {"ours": 1.0, "eager": 2.0}, "16": {"ours": 1.5}}
    utils.pretty_print(results, "products", "ms")
    assert "| 16 | 1.5 | - |" in capsys.readouterr().out
    for draw in (utils.pretty_plot, utils.pretty_barplot):
        draw(results, "products", "ms", filename=str(tmp_path / "p.png"), dash_key="eager")
        assert (tmp_path / "p.png").stat().st_size > 1000
        (tmp_path / "p.png").unlink()
    assert utils.DTYPE2STR[torch.bfloat16] == "b16"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graph():
    x = torch.randn(256, 256, device="cuda")
    with pytest.raises(RuntimeError, match="default stream"):
        utils.do_bench_cudagraph(lambda: x @ x)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert 0 < utils.do_bench_cudagraph(lambda: x @ x) < 10
