"""xformers.benchmarks.report: a page, and an exit code, from measured, stored and doctored rows."""

import json
from pathlib import Path

import pytest
from xformers.benchmarks import report
from xformers.benchmarks._report.rows import read_run
from xformers.helpers.training import UserError

ROOT = Path(__file__).resolve().parents[2]


def contents(seconds, date="2026-01-02", device="cpu", spread=0.0, name="a row"):
    sides = {"ours": {"seconds": seconds, "spread": spread}, "eager": {"seconds": 2.0, "spread": 0.0}}
    return json.dumps({"device": device, "date": date, "rows": [{"name": name, "sides": sides}]})


@pytest.fixture
def judged(tmp_path):
    """The exit code for a measured row beside stored files."""

    def judge(measured, *stored):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "out" / "mlp.json").write_text(measured)
        for i, text in enumerate(stored):
            (tmp_path / "results" / f"{i}.json").write_text(text)
        words = ["--names", "mlp", "--only_page", "--out", str(tmp_path / "out")]
        return report.main([*words, "--results", str(tmp_path / "results")])

    return judge


@pytest.mark.parametrize(
    "stored, code",
    [
        ([contents(1.0)], 1),
        ([contents(1.16)], 0),
        ([contents(1.0, device="another")], 0),
        ([contents(1.0, name="another row")], 0),
        ([contents(1.0, spread=0.2)], 0),
        ([contents(1.0, "2025-01-01"), contents(1.2, "2026-01-01")], 0),  # the latest one counts
        ([contents(1.2, "2025-01-01"), contents(1.0, "2026-01-01")], 1),
        (["{}"], 0),  # a file of another kind
        ([], 0),
    ],
)
def test_exit_code(stored, code, judged, tmp_path, capsys):
    assert judged(contents(1.2), *stored) == code
    assert ("slower: mlp: a row" in capsys.readouterr().out) == bool(code)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "1200.000 ms" in text and "1.67" in text and ("class=slower" in text) == bool(code)


def test_damaged_file(judged):
    with pytest.raises(UserError, match="expected a file of benchmarks"):
        judged("{")


def test_names_are_escaped(judged, tmp_path):
    judged(contents(1.0, name="<script>"))
    assert "<script>" not in (tmp_path / "out" / "index.html").read_text()


def test_measures(tmp_path):
    words = ["--names", "nystrom_utils", "--smoke", "--out", str(tmp_path), "--results", str(tmp_path / "none")]
    assert report.main(words) == 0
    assert read_run(tmp_path / "nystrom_utils.json").rows and "data:image/png" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*cpu*.json")), ids=lambda path: path.name)
def test_reads_what_the_cpp_drivers_wrote(path):
    run = read_run(path)
    assert len(run.rows) > 10 and run.device != "cpu"
    assert all(row.ours == "ours" for row in run.rows)
    assert sum(row.roof is not None for row in run.rows) > len(run.rows) / 2
    assert sum(row.rival is not None for row in run.rows) > len(run.rows) / 2
