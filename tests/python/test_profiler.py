"""The profiler's schedule, life cycle, files and trigger; what it leaves behind: nothing."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask
from xformers.profiler.profiler import _Profiler

import xformers.ops as xops
import xformers.profiler as xp
from xformers.profiler import api

SCHEDULE = api.DEFAULT_SCHEDULE


class Recorder:
    """A profiler of a user: writes down what is called at which step."""

    log: list = []

    def __init__(self, main_profiler):
        self.main = main_profiler
        self.note("init")

    def note(self, what):
        self.log.append((type(self).__name__, what, self.main.done_steps))

    def __enter__(self):
        self.note("enter")

    def step(self):
        self.note("step")

    def __exit__(self, *_):
        self.note("exit")


class Other(Recorder):
    pass


@pytest.fixture(autouse=True)
def _clean():
    Recorder.log.clear()
    yield
    assert _Profiler._CURRENT_PROFILER is None


def run_steps(profiler, count):
    with profiler:
        for _ in range(count):
            xp.step()


# ---- schedule ----
@pytest.mark.parametrize(
    "entries, good",
    [
        ([(0, 1)], True),
        ([(0, 1), (1, 2)], True),
        ([(3, 5), (0, 3)], True),  # in any order
        ([(-1, 2)], False),
        ([(0, 0)], False),
        ([(2, 2)], False),
        ([(3, 1)], False),
        ([(0, 2), (1, 3)], False),
        ([(4, 6), (0, 5)], False),
        ([(0, 10), (2, 3)], False),
    ],
)
def test_schedule_is_checked(tmp_path, entries, good):
    schedule = [(Recorder, begin, end) for begin, end in entries]
    if good:
        xp.profile(tmp_path, schedule=schedule)
    else:
        with pytest.raises(AssertionError, match="profiler: the steps of Recorder are"):
            xp.profile(tmp_path, schedule=schedule)


def test_empty_schedule_warns(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_steps(xp.profile(tmp_path, schedule=[]), 12)
    assert "schedule is empty" in caplog.text


def test_life_cycle(tmp_path):
    run_steps(xp.profile(tmp_path, schedule=[(Other, 3, 4), (Recorder, 0, 2)]), 10)
    assert Recorder.log == [
        ("Recorder", "init", 0),
        ("Recorder", "enter", 0),
        ("Recorder", "step", 1),
        ("Recorder", "step", 2),
        ("Recorder", "exit", 2),
        ("Other", "init", 3),
        ("Other", "enter", 3),
        ("Other", "step", 4),
        ("Other", "exit", 4),
    ]


def test_touching_entries_follow_each_other(tmp_path):
    run_steps(xp.profile(tmp_path, schedule=[(Recorder, 0, 1), (Other, 1, 2)]), 2)
    assert [row[:2] for row in Recorder.log] == [
        (n, w) for n in ("Recorder", "Other") for w in ("init", "enter", "step", "exit")
    ]


def test_start_step_stop_closes_what_runs(tmp_path):
    profiler = xp.profile(tmp_path, schedule=[(Recorder, 1, 5)])
    profiler.start()
    assert _Profiler._CURRENT_PROFILER is profiler
    profiler.step()
    xp.step()
    profiler.stop()
    assert [row[1] for row in Recorder.log] == ["init", "enter", "step", "exit"]


def test_step_without_a_profiler_does_nothing():
    assert xp.step() is None


def test_second_active_profiler_is_refused(tmp_path):
    with xp.profile(tmp_path, schedule=[(Recorder, 0, 1)]) as first:
        with pytest.raises(ValueError, match="another one is active"):
            xp.profile(tmp_path, schedule=[(Recorder, 0, 1)]).start()
        assert _Profiler._CURRENT_PROFILER is first


def test_summary_is_logged_at_the_end(tmp_path, caplog):
    class Says(Recorder):
        def __exit__(self, *_):
            self.main.summary += [("Title", "value"), ("Longer title", "1")]

    with (
        caplog.at_level(logging.INFO, logger="xformers.profiler"),
        xp.profile(tmp_path, schedule=[(Says, 0, 2)]) as profiler,
    ):
        xp.step()
        assert "Title" not in caplog.text
        xp.step()
        assert "Title:        value\nLonger title: 1" in caplog.text
        assert profiler.format_summary() == "Title:        value\nLonger title: 1"


# ---- failures ----
@pytest.mark.parametrize("where", ["__init__", "__enter__", "step", "__exit__"])
def test_failures_never_stop_training(tmp_path, where):
    def fail(*_):
        raise OSError("No space left on device")

    broken = type("Broken", (Recorder,), {where: fail})
    profiler = xp.profile(tmp_path, schedule=[(broken, 0, 2), (Other, 2, 3)])
    run_steps(profiler, 5)
    assert ("Broken", "Error: OSError: No space left on device") in profiler.summary
    assert ("Other", "exit", 3) in Recorder.log


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    profiler = xp.profile(tmp_path / "file" / "folder")
    run_steps(profiler, 9)
    text = profiler.format_summary()
    assert "output_dir" in text and "PyTorchProfiler:" in text and "Error" in text


def test_analysis_that_fails_is_in_the_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(xp.PyTorchProfiler, "_analyze_trace", lambda *_: 1 / 0)
    profiler = xp.profile(tmp_path, schedule=[(xp.PyTorchProfiler, 0, 1)])
    run_steps(profiler, 2)
    assert ("TraceAnalysis", "Error") in profiler.summary


def test_another_profiler_of_pytorch_is_running(tmp_path):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True):
        profiler = xp.profile(tmp_path, schedule=[(xp.PyTorchProfiler, 0, 1)])
        run_steps(profiler, 2)
    assert "torch.profiler is running already" in profiler.format_summary()


# ---- the five profilers, without a GPU ----
class TakesTuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, argument):
        assert isinstance(argument, tuple) and len(argument) == 1
        return self.layer(argument[0])


def hooks_of(module):
    names = [name for name in vars(module) if name.endswith("_hooks")]
    return {name: dict(vars(module)[name]) for name in names}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU gets")
@pytest.mark.parametrize("compiled", [False, True])
def test_default_schedule(tmp_path, compiled):
    """0.0.27: a module that takes one tuple gets it; nothing stays in the module or the dispatcher."""
    module = TakesTuple()
    before = hooks_of(module)
    model = torch.compile(module, backend="aot_eager") if compiled else module
    model((torch.randn(4, 16),)).sum().backward()  # compiles, which takes long under a profiler
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    schedule = [*SCHEDULE, (api.DCGMProfiler, 8, 9)]
    with xp.profile(tmp_path, module=model, schedule=schedule) as profiler:
        for _ in range(11):
            model((torch.randn(4, 16),)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            xp.step()
            assert hooks_of(module) == before and not any(before.values())
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    summary = dict(profiler.summary)
    assert int(summary["Step time (ms)"]) >= 0
    assert [summary[name] for name in ("TFlop/step", "TFlops", "HFU", "MFU")] == ["0.0", "0.0", "n/a", "n/a"]
    assert summary["MemTrace"] == "000002_memory_trace_plot.html"
    assert summary["Nsight"] == "not started: no GPU" and summary["DCGM"] == "not available: no bindings"
    assert summary["PyTorchProfiler"] == summary["PyTorchProfiler_CUDAOnly"] == "of the CPU alone: no GPU"
    for folder in ("profile_CPU_CUDA_000006", "profile_CUDA_000007"):
        (trace,) = (tmp_path / folder).glob("*.pt.trace.json.gz")
        assert trace.name.startswith(profiler.worker_name + ".")
    picture = (tmp_path / "000002_memory_trace_plot.html").read_text()
    assert "http" not in picture and "<polygon" in picture and Path(__file__).name in picture
    report = json.loads((tmp_path / "profile_CPU_CUDA_000006/report.json").read_text())
    flops = 2 * 4 * 16 * 16
    assert (report["operations"]["forward"], report["operations"]["backward"]) == (flops, flops)
    assert report["operations"]["step_time_is_of"] == "steps that were not traced"
    assert sum(part["ms"] for part in report["step"]["parts"]) == pytest.approx(report["step"]["ms"], rel=0.01)
    weights = 4 * (16 * 16 + 16)
    assert report["memory"]["classes"]["parameters"] == weights
    assert report["memory"]["classes"]["gradients"] >= weights
    assert report["timeline"]["step"] == "ProfilerStep#6"


def test_lines_that_allocated(tmp_path):
    keep = []
    with xp.profile(tmp_path, schedule=[(xp.PyTorchProfiler, 0, 1)]):
        keep.append(torch.zeros(1 << 20) + 1)  # HERE
        xp.step()
    (report,) = tmp_path.glob("*/report.json")
    first = json.loads(report.read_text())["memory"]["lines"][0]
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# HERE"))
    assert f"{Path(__file__).name}:{line} " in first["where"] and first["bytes"] >= 4 << 20


def test_packed_sequences_count_their_own_lengths(tmp_path):
    """A trace holds no lengths: they are remembered while it is recorded, forward and backward."""
    lengths = [5, 30, 13]
    x = torch.randn(1, sum(lengths), 2, 16, requires_grad=True)
    bias = BlockDiagonalCausalMask.from_seqlens(lengths, device="cpu")
    with xp.profile(tmp_path, schedule=[(xp.PyTorchProfiler, 0, 1)]):
        for _ in range(2):
            xops.memory_efficient_attention(x, x, x, bias).sum().backward()
        xp.step()
        xops.memory_efficient_attention(x, x, x, bias)
    (report,) = tmp_path.glob("*/report.json")
    operations = json.loads(report.read_text())["operations"]
    forward = 2 * (2 * sum(n * n for n in lengths) * 2 * 16)
    assert (operations["forward"], operations["backward"]) == (forward, 2.5 * forward)


def test_class_that_derives_from_ours(tmp_path):
    """As lingua does: a torch.profiler.profile of its own, and work after the trace and after the picture."""
    seen = []

    class Derived(xp.PyTorchProfiler):
        def __init__(self, main_profiler):
            self.main_profiler = main_profiler
            self.num_steps = 0
            self.pytorch_profiler = torch.profiler.profile(
                on_trace_ready=self._on_trace, record_shapes=True, profile_memory=True, acc_events=True,
                activities=[torch.profiler.ProfilerActivity.CPU],
            )  # fmt: skip

        def _analyze_trace(self, prof):
            super()._analyze_trace(prof)
            seen.append("analyzed")

        def _on_trace(self, prof):
            super()._on_trace(prof)
            seen.extend(tmp_path.glob("profile_CPU_CUDA*/*.pt.trace.json*"))

    class Memory(xp.MemSnapshotsProfiler):
        def __exit__(self, *exception):
            super().__exit__(*exception)
            seen.append(Path(self.main_profiler._create_output_filename("memory_trace_plot.html")).exists())

    profiler = xp.profile(tmp_path, schedule=[(Memory, 0, 1), (Derived, 1, 2)])
    with profiler:
        for _ in range(3):
            torch.randn(8, 8) @ torch.randn(8, 8)
            xp.step()
    assert seen[:2] == [True, "analyzed"] and len(seen) == 3
    assert "TFlop/step" in dict(profiler.summary) and "Error" not in profiler.format_summary()
    (report,) = tmp_path.glob("*/report.json")
    assert "with_stack" in json.loads(report.read_text())["notes"][0]


def test_stopped_in_the_middle(tmp_path):
    profiler = xp.profile(tmp_path, schedule=[(xp.PyTorchProfiler, 0, 4)])
    profiler.start()
    (torch.randn(64, 64) @ torch.randn(64, 64)).sum()
    profiler.stop()
    assert "Error" not in profiler.format_summary() and "TFlop/step" in dict(profiler.summary)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the CPU's allocations")
def test_memory_is_saved_when_a_step_dies(tmp_path):
    profiler = xp.profile(tmp_path, schedule=[(xp.MemSnapshotsProfiler, 0, 3)])
    with pytest.raises(MemoryError), profiler:
        kept = torch.zeros(1000)
        raise MemoryError
    assert kept.numel() and list(tmp_path.glob("*memory_trace_plot.html"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the CPU's allocations")
def test_no_allocation_gives_a_note_and_no_file(tmp_path):
    profiler = xp.profile(tmp_path, schedule=[(xp.MemSnapshotsProfiler, 0, 1)])
    run_steps(profiler, 1)
    assert ("MemTrace", "(no allocation recorded)") in profiler.summary and not list(tmp_path.iterdir())


def test_counters_of_dcgm(tmp_path, monkeypatch):
    """With bindings like DCGM's: averages over its steps, of what came after it began."""
    from xformers.profiler import profiler_dcgm

    class Value:
        isBlank = False

        def __init__(self, value):
            self.value = value

    class Reader:
        def __init__(self, fieldIds, updateFrequency, fieldGroupName, gpuIds):
            assert (list(gpuIds), updateFrequency) == ([], 5000) or torch.cuda.is_available()
            self.fields, self.calls = fieldIds, 0

        def GetAllGpuValuesAsFieldIdDictSinceLastCall(self):
            self.calls += 1
            return {0: {field: [Value(self.calls)] for field in self.fields}}

        def Shutdown(self):
            Recorder.log.append("shutdown")

    fields = type("Fields", (), {name: i for i, name in enumerate(profiler_dcgm._FIELDS)})
    monkeypatch.setattr(profiler_dcgm, "_bindings", lambda: (Reader, fields))
    profiler = xp.profile(tmp_path, schedule=[(api.DCGMProfiler, 0, 2)])
    run_steps(profiler, 3)
    assert ("GPU 0 SM active", "3.000") in profiler.summary and len(profiler.summary) == 8  # of 2, 3, 4; not of 1
    assert Recorder.log == ["shutdown"]


# ---- names, trigger ----
def test_names_of_files(tmp_path):
    profiler = xp.profile(tmp_path / "a" / "b", schedule=SCHEDULE)
    assert profiler.output_dir == (tmp_path / "a" / "b").absolute() and profiler.output_dir.is_dir()
    profiler.done_steps = 12
    assert profiler._create_output_filename("plot.html") == tmp_path / "a/b/000012_plot.html"


def test_trigger(tmp_path):
    """0.0.27: looked for every ten steps after the schedule is done; the schedule starts again, one step after."""
    with xp.profile(tmp_path, schedule=[(Recorder, 0, 1)]) as profiler:
        (tmp_path / "trigger").write_text("")
        for _ in range(9):
            xp.step()
        assert (tmp_path / "trigger").exists()
        xp.step()
        assert not (tmp_path / "trigger").exists()
        assert (tmp_path / "trigger.000000020").read_text() == profiler.worker_name
        profiler.summary.append(("of", "before"))
        for _ in range(10):
            xp.step()
        assert profiler.summary == [] and len(Recorder.log) == 4
        for _ in range(12):
            xp.step()
    assert Recorder.log[4:] == [
        ("Recorder", "init", 21),
        ("Recorder", "enter", 21),
        ("Recorder", "step", 22),
        ("Recorder", "exit", 22),
    ]


WORKER = """
import sys, torch
import torch.distributed as dist
import xformers.profiler as xp
sys.path.append(sys.argv[3])
from gloo_process import leave
out, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
x = torch.randn(8, 8)
with xp.profile(out + "/profile", schedule=[(xp.MemSnapshotsProfiler, 0, 1), (xp.PyTorchProfiler, 1, 2)]) as profiler:
    for i in range(36):
        dist.all_reduce(x @ x)
        if i == 5 and rank == 1:
            open(out + "/profile/trigger", "w").close()
        xp.step()
    dist.barrier()
print(profiler.format_summary())
leave()
"""


def test_two_processes(tmp_path):
    """Names hold host and process; the trigger starts both at the same step; one report of both ranks."""
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(rank), str(Path(__file__).parent)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        assert "Error" not in out, out
    folder = tmp_path / "profile"
    pictures = sorted(p.name for p in (folder / "memory_trace_plot").iterdir())
    pids = {str(worker.pid) for worker in workers}
    assert {name.split("_")[0] for name in pictures} == {"000001", "000022"} and len(pictures) == 4
    assert {name.removesuffix(".html").split("_")[-1] for name in pictures} == pids
    assert sorted(p.name for p in folder.glob("trigger*")) == ["trigger.000000020"]
    for name in ("profile_CPU_CUDA_000001", "profile_CPU_CUDA_000022"):
        assert len(list((folder / name).glob("*.pt.trace.json.gz"))) == 2
    page = xp.write_report(folder / "profile_CPU_CUDA_000022")
    report = json.loads(page.with_suffix(".json").read_text())
    assert [row["rank"] for row in report["ranks"]] == [0, 1]


# ---- what it costs ----
@pytest.mark.wall_clock
def test_step_outside_of_scheduled_steps(tmp_path):
    def microseconds(count=2000):
        """Of a processor's time: a busy machine gets many chances."""
        best = float("inf")
        for _ in range(40):
            began = time.process_time_ns()
            for _ in range(count):
                xp.step()
            best = min(best, (time.process_time_ns() - began) / count / 1000)
        return best

    with xp.profile(tmp_path, schedule=[(Recorder, 10**9, 10**9 + 1)]):
        before = microseconds()
    with xp.profile(tmp_path, schedule=[(Recorder, 0, 1)]):
        after = microseconds()
    assert before < 2 and after < 2, (before, after)
