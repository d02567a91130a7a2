"""The analysis of traces, on made-up ones with known answers and on damaged ones; comparing ranks; the report."""

import gzip
import json
import os
import re
import statistics
import subprocess
from pathlib import Path

import pytest
import torch
from profiler_traces import kernel, launch, memory, mm, operator, step, trace, write
from xformers.profiler.device_limits import DEVICE_LIMITS, DeviceLimit
from xformers.profiler.profile_analyzer import AnalyzedTrace
from xformers.profiler.report import write_report

from xformers import _profiler_library
from xformers.profiler import device_limits, find_slowest

LIMIT = DeviceLimit("made up", "", (0, 0), 1e12, {torch.float32: 2.0, torch.float16: 4.0, torch.float64: 1.0})


def analyze(events, **options):
    return _profiler_library.call("analyze", text=json.dumps(trace(events, **options)))


# ---- operations ----
def test_dtypes_have_their_own_peaks():
    events = [
        mm(0, 10, 100, 200, 300, "float"),
        mm(20, 10, 100, 200, 300, "c10::BFloat16"),
        mm(40, 10, 100, 200, 300, "c10::Half"),
        mm(60, 10, 100, 200, 300, "double"),
        mm(80, 20, 10, 20, 30, "c10::Float8_e4m3fn"),
    ]
    found = AnalyzedTrace._from(analyze(events))
    one = 2 * 100 * 200 * 300
    assert found.operations_per_dtype_fw == {
        torch.float32: one,
        torch.float16: 2 * one,  # bf16 too: its peak is the same
        torch.float64: one,
        torch.float8_e4m3fn: 2 * 10 * 20 * 30,
    }
    assert found.total_time_s == pytest.approx(100e-6)
    by_hand = (one / 2e12 + 2 * one / 4e12 + one / 1e12) / 100e-6  # fp8 has no peak here
    assert found.compute_hfu(LIMIT) == pytest.approx(by_hand)
    assert found.compute_mfu(LIMIT) == pytest.approx(by_hand)
    assert found.compute_num_ops(torch.float16) == 2 * one
    assert found.compute_num_ops() == 4 * one + 12000


def test_utilization_divides_by_the_time_once():
    """0.0.28: not multiplied by the number of dtypes."""
    found = AnalyzedTrace({torch.float32: 2e12, torch.float16: 4e12}, {}, 4.0)
    assert found.compute_hfu(LIMIT) == pytest.approx((1 + 1) / 4)
    assert found.compute_mfu(LIMIT) == pytest.approx((1 + 1) / 4)


def test_model_utilization_is_at_most_three_forward_passes():
    found = AnalyzedTrace({torch.float32: 1e12}, {torch.float32: 3e12}, 1.0)
    assert found.compute_hfu(LIMIT) == pytest.approx(2.0)
    assert found.compute_mfu(LIMIT) == pytest.approx(1.5)


def test_only_the_outermost_counts():
    layer = operator("aten::linear", 0, 100, [[4, 8], [16, 8]], ["float"] * 2, tid=1)
    inner = mm(10, 50, 4, 8, 16)
    fused = operator("xformers::fused_linear", 200, 50, [[4, 8], [16, 8], [], []], ["float", "float", "", ""], tid=1)
    again = operator("xformers::product", 210, 20, [[4, 8], [8, 16], []], ["float", "float", ""], tid=1)
    found = AnalyzedTrace._from(analyze([inner, layer, again, fused]))
    assert found.compute_num_ops() == 2 * (2 * 4 * 8 * 16)


def test_backward_by_thread_and_by_enclosing_event():
    forward = mm(0, 10, 4, 8, 16, **{"Sequence number": 5})
    link = operator("MmBackward0", 20, 30, tid=1, **{"Sequence number": 5, "Fwd thread id": 1})
    inside = mm(25, 10, 4, 8, 16)
    other_link = operator("AddBackward0", 100, 5, tid=2, **{"Sequence number": 4, "Fwd thread id": 1})
    other = mm(110, 10, 4, 8, 16, tid=2)
    after = mm(200, 10, 4, 8, 16)
    found = AnalyzedTrace._from(analyze([forward, link, inside, other_link, other, after]))
    assert found.compute_num_ops(fw=True, bw=False) == 2 * 1024
    assert found.compute_num_ops(fw=False, bw=True) == 2 * 1024


def test_what_is_recomputed():
    link = operator("MmBackward0", 20, 60, tid=2, **{"Sequence number": 5, "Fwd thread id": 1})
    again = mm(25, 10, 4, 8, 16, tid=2, **{"Sequence number": 9})
    gradient = mm(40, 10, 4, 8, 16, tid=2)
    found = AnalyzedTrace._from(analyze([mm(0, 10, 4, 8, 16), link, again, gradient]))
    assert found.operations_per_dtype_recomputed == {torch.float32: 1024}
    assert found.operations_per_dtype_bw == {torch.float32: 2 * 1024}
    assert found.compute_mfu(LIMIT) == pytest.approx(found.compute_hfu(LIMIT) * 2 / 3)


def test_attention_in_both_orders_of_dimensions():
    dims, types = [[2, 10, 3, 8]] * 3, ["float"] * 3
    ours = operator("xformers::attention_forward", 0, 1, dims, types)
    causal = operator("xformers::attention_forward", 10, 1, [*dims, [], [], [], []], [*types, "", *["Scalar"] * 3],
                      ["", "", "", "", "-1", "0", "False"])  # fmt: skip
    cutlass = operator("xformers::efficient_attention_forward_cutlass", 20, 1, dims + [[]] * 11, types + [""] * 11,
                       [""] * 9 + ["2"])  # fmt: skip
    sdpa = operator("aten::_scaled_dot_product_flash_attention", 30, 1, [[2, 3, 10, 8]] * 3 + [[], []],
                    [*types, "Scalar", "Scalar"], ["", "", "", "0.", "True"])  # fmt: skip
    full = 2 * 3 * 10 * 10 * 2 * 2 * 8
    for event, flops in ((ours, full), (causal, full / 2), (cutlass, full / 2), (sdpa, full / 2)):
        assert AnalyzedTrace._from(analyze([event])).compute_num_ops() == flops, event["name"]


# ---- time ----
def parts_of(found, index=0):
    return {name: us for name, us in found["steps"][index]["parts_us"].items() if us}


def test_parts_of_a_step_on_the_gpu():
    events = [
        step(3, 0, 400, on_gpu=True),
        kernel("sm90_xmma_gemm_bf16", 0, 100),
        kernel("ncclDevKernel_AllReduce", 50, 100, stream=20),  # half of it hidden
        launch(1, 150, 30),  # what comes next was launched late
        kernel("Memcpy HtoD (Pageable -> Device)", 200, 20, correlation=1, cat="gpu_memcpy"),
        kernel("flash_fwd_kernel", 220, 80),
        kernel("vectorized_elementwise_kernel", 290, 60),
        launch(2, 100, 5),  # early: the gap before it has another reason
        kernel("ampere_sgemm_128x64", 360, 40, correlation=2),
    ]
    found = analyze(events)
    assert parts_of(found) == {
        "products": 140,
        "attention": 80,
        "other compute": 50,
        "exposed communication": 50,
        "copies": 20,
        "idle: host late": 30,
        "other idle": 20 + 10,
    }
    assert found["steps"][0]["hidden_communication_us"] == 50
    assert sum(parts_of(found).values()) == found["steps"][0]["duration_us"] == 400


def test_kernels_take_the_part_of_the_operator_that_launched_them():
    events = [
        operator("aten::mm", 0, 10, [[4, 8], [8, 16]], ["float"] * 2, **{"External id": 5}),
        kernel("some_name", 20, 30, **{"External id": 5}),
        kernel("some_name", 60, 30, **{"External id": 6}),
    ]
    found = analyze(events)
    assert parts_of(found) == {"products": 30, "other compute": 30, "other idle": 10}
    assert [(o["name"], o["us"]) for o in found["operators"]] == [("aten::mm", 30)]


def test_parts_of_steps_on_the_cpu():
    events = [
        step(0, 0, 100),
        operator("aten::linear", 10, 40, [[4, 8], [16, 8]], ["float"] * 2),
        mm(20, 20, 4, 8, 16),
        operator("aten::to", 60, 30),
        operator("aten::copy_", 65, 10, [[4], [4]], ["float"] * 2),
        step(1, 100, 50),
        operator("xformers::attention_forward", 110, 30, [[1, 4, 1, 8]] * 3, ["float"] * 3),
    ]
    found = analyze(events)
    assert parts_of(found, 0) == {"products": 20, "other compute": 40, "copies": 10, "idle: host late": 30}
    assert parts_of(found, 1) == {"attention": 30, "idle: host late": 20}


def test_peer_copies_are_communication():
    found = analyze([kernel("Memcpy PtoP (Device -> Device)", 0, 10, cat="gpu_memcpy"), kernel("gemm", 20, 5)])
    assert parts_of(found)["exposed communication"] == 10


# ---- damage ----
def many_events(count=500):
    return [mm(10 * i, 5, 4, 8, 16) for i in range(count)]


@pytest.mark.parametrize("name", ["a.pt.trace.json.gz", "a.json"])
def test_cut_off_in_the_middle(tmp_path, name):
    path = write(tmp_path, trace(many_events(), rank=0), name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = _profiler_library.call("analyze", trace=str(path))
    assert re.fullmatch(r".* is cut off after \d+ characters, expected a whole trace; the \d+ events before are used",
                        found["problem"])  # fmt: skip
    assert 0 < found["events"] < 500 and found["forward"]["float32"] == found["events"] * 1024
    page = write_report(tmp_path)
    assert "is cut off after" in page.read_text()


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty, expected a whole trace"),
        (b"<html>", "is no JSON|is empty"),
        (b'{"traceEvents": [{"ph": "X", "ts": oops', "is no JSON from character"),
        (gzip.compress(b'{"traceEvents": []', mtime=0)[:-9], "is cut off|is empty"),
        (b"\x1f\x8b\x08\x00garbage", "is empty|is no JSON|is cut off"),
        (b"[1, 2, 3", "is cut off"),
    ],
)
def test_unreadable(tmp_path, content, says):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    found = _profiler_library.call("analyze", trace=str(path))
    assert re.search(says, found["problem"]) and found["events"] == 0
    for function in (find_slowest.print_profiling_info, write_report):
        with pytest.raises(ValueError, match="Fix:"):
            function(tmp_path)


def test_odd_traces_are_read():
    """A list of events alone; names that are no UTF-8; values of every kind; nesting that means nothing."""
    events = many_events(3)
    text = json.dumps(events)
    assert _profiler_library.call("analyze", text=text)["events"] == 3
    events[0]["args"] |= {"x": None, "y": [1, [2, {"z": 1e300}]], "w": True, "Input Strides": [[1], []]}
    text = json.dumps({"a": {"b": [{}]}, "traceEvents": events, "more": [[1]]})
    found = _profiler_library.call("analyze", text=text)
    assert found["events"] == 3 and not found["problem"] and found["forward"]["float32"] == 3 * 1024
    assert not _profiler_library.call("analyze", text='{"traceEvents": []}')["steps"]


def test_names_that_are_no_utf8(tmp_path):
    path = write(tmp_path, trace(many_events(2)), "a.json")
    path.write_bytes(path.read_bytes().replace(b"made up", b"\xff\xfe\x01\n"))
    found = _profiler_library.call("analyze", trace=str(path))
    assert found["events"] == 2 and not found["problem"]


def test_missing_file_and_folder(tmp_path):
    assert "cannot be read: No such file" in _profiler_library.call("analyze", trace=str(tmp_path / "no"))["problem"]
    with pytest.raises(ValueError, match="a folder without traces"):
        find_slowest.print_profiling_info(tmp_path / "no")


# ---- ranks ----
def rank_events(rank, slow_rank, slow_kernel="gemm_7"):
    """Twelve kernels and three collectives; the slow rank's kernel takes thrice as long, and others wait for it."""
    events, now = [], 0
    for i in range(12):
        name = f"gemm_{i}" if i % 4 else f"ncclDevKernel_AllReduce_{i}"
        duration = 100 + 3 * i + (rank * 7 + i) % 5
        if rank == slow_rank and name == slow_kernel:
            duration *= 3
        if name.startswith("nccl") and i > 7 and rank != slow_rank:
            duration += 200
        events.append(kernel(name, now, duration))
        now += duration + 1
    return events


def make_ranks(folder, count, slow_rank):
    for rank in range(count):
        write(folder, trace(rank_events(rank, slow_rank), rank=rank), f"host_{rank:03}.1.pt.trace.json.gz")


def test_planted_rank_and_kernel_come_first(tmp_path):
    make_ranks(tmp_path, 64, slow_rank=41)
    found = _profiler_library.call("find_slowest", folder=str(tmp_path))
    first = found["computation"][0]
    assert (first["kernel"], first["slowest_rank"]) == ("gemm_7", 41)
    times = [e["dur"] * 1e-6 for r in range(64) for e in rank_events(r, 41) if e["name"] == "gemm_7"]
    assert first["deviation_s"] == pytest.approx(statistics.stdev(times))
    assert first["over_median_s"] == pytest.approx(max(times) - statistics.median(times))
    assert found["late"][0]["rank"] == 41 and found["late"][0]["seconds"] == pytest.approx(200e-6, rel=0.05)

    report = json.loads(write_report(tmp_path).with_suffix(".json").read_text())
    assert [row["rank"] for row in report["ranks"] if row["straggler"]] == [41]
    assert report["slowest"]["computation"][0]["slowest_rank"] == 41
    assert any("rank 41, whose kernel gemm_7 is slow" in sentence for sentence in report["verdict"])


def test_what_the_command_prints(tmp_path, capsys, build_dir):
    make_ranks(tmp_path / "profile_CPU_CUDA_000006", 5, slow_rank=3)
    find_slowest.print_profiling_info(tmp_path)  # a folder above
    text = capsys.readouterr().out
    assert text.startswith("5 traces\n")
    shortest = text.split("Shortest")[1].splitlines()
    assert "rank 3" in shortest[1] and len(shortest) > 4
    assert len(re.findall(r"slowest: rank \d", text)) == 3 + 5
    command = build_dir / "bin/xformers_profiler"
    if command.exists():
        run = subprocess.run([command, "slowest", tmp_path], capture_output=True, text=True, check=True)
        assert run.stdout == text
        assert subprocess.run([command, "slowest", tmp_path / "no"], capture_output=True).returncode == 1
        assert subprocess.run([command], capture_output=True).returncode == 2


def test_one_rank_deviates_by_nothing(tmp_path):
    write(tmp_path, trace(rank_events(0, None)), "only.json")
    found = _profiler_library.call("find_slowest", folder=str(tmp_path))
    assert {row["deviation_s"] for row in found["computation"] + found["communication"]} == {0}
    assert "nan" not in found["text"].lower()


def test_a_damaged_rank_does_not_hide_the_others(tmp_path):
    make_ranks(tmp_path, 4, slow_rank=2)
    (tmp_path / "host_001.1.pt.trace.json.gz").write_bytes(b"")
    found = _profiler_library.call("find_slowest", folder=str(tmp_path))
    assert found["text"].startswith("3 traces") and found["computation"][0]["slowest_rank"] == 2


# ---- report ----
def gpu_run(folder, device="NVIDIA H200"):
    events = [step(6, 0, 1000, on_gpu=True)]
    events += [operator("aten::mm", 0, 5, [[4096, 4096]] * 2, ["c10::BFloat16"] * 2, **{"External id": 1})]
    events += [operator("aten::copy_", 6, 5, [[2**26], [2**26]], ["float"] * 2, **{"External id": 2})]
    events += [
        kernel("nvjet_gemm", 0, 200, **{"External id": 1}),
        kernel("copy_kernel", 300, 160, **{"External id": 2}),
    ]
    events += [memory(10 * i, 1000 * (i % 7)) for i in range(50)]
    return write(folder, trace(events, rank=0, device=device))


def test_report_of_a_known_device(tmp_path):
    gpu_run(tmp_path)
    report = json.loads(write_report(tmp_path).with_suffix(".json").read_text())
    flops = 2 * 4096**3
    assert report["device"]["limits_of"] == "H200"
    operations = report["operations"]
    assert operations["dtypes"][0]["share_of_peak"] == pytest.approx(flops / 1e-3 / 989e12)
    assert operations["hfu"] == operations["mfu"] == pytest.approx(flops / 1e-3 / 989e12)
    rows = {row["name"]: row for row in report["operators"]}
    assert rows["aten::mm"]["share_of_limit"] == pytest.approx(flops / 200e-6 / 989e12)
    assert rows["aten::copy_"]["gbps"] == pytest.approx(2 * 4 * 2**26 / 160e-6 / 1e9)
    assert rows["aten::copy_"]["share_of_limit"] == pytest.approx(2 * 4 * 2**26 / 160e-6 / 4.8e12)
    assert sum(part["ms"] for part in report["step"]["parts"]) == pytest.approx(report["step"]["ms"], rel=0.01)
    assert len(report["verdict"]) == 3 and all(sentence.endswith(".") for sentence in report["verdict"])
    assert report["memory"]["peak_bytes"] == 6000


def test_report_of_an_unknown_device_says_how_to_add_one(tmp_path, monkeypatch):
    gpu_run(tmp_path, device="NVIDIA H999")
    report = json.loads(write_report(tmp_path).with_suffix(".json").read_text())
    assert report["operations"]["mfu"] is None and "add_device_limit" in report["device"]["note"]
    monkeypatch.setattr(device_limits, "_added", [])
    device_limits.add_device_limit(DeviceLimit("H999", "a guess", (9, 0), 1e12, {torch.float16: 100.0}))
    report = json.loads(write_report(tmp_path).with_suffix(".json").read_text())
    assert report["operations"]["mfu"] == pytest.approx(2 * 4096**3 / 1e-3 / 100e12)


def test_page_loads_nothing(tmp_path):
    hostile = "</script><script>alert(1)</script>"
    write(tmp_path, trace([step(0, 0, 10), mm(0, 5, 4, 8, 16), operator(hostile, 6, 2)]))
    page = write_report(tmp_path)
    text = page.read_text()
    assert page.stat().st_size < 3e6
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text.replace('href="https://ui.perfetto.dev"', ""))
    assert "@import" not in text and "url(" not in text and hostile not in text
    assert 'href="${escape(encodeURI(t))}"' in text and page.with_name("report.json").exists()


def test_facts_beside_a_trace_are_used(tmp_path):
    path = gpu_run(tmp_path)
    facts = {"step_time_s": 0.0005, "notes": ["said by the run"], "memory": {"peak_bytes": 5, "classes": {"x": 5}}}
    path.with_name("host_1.1.facts.json").write_text(json.dumps(facts))
    report = json.loads(write_report(tmp_path).with_suffix(".json").read_text())
    assert report["operations"]["step_time_s"] == 0.0005 and report["notes"] == ["said by the run"]
    assert report["operations"]["traced_step_time_s"] == 0.001
    assert report["memory"]["classes"] == {"x": 5}


def test_a_folder_without_rights(tmp_path):
    gpu_run(tmp_path)
    (tmp_path / "report.json").mkdir()  # cannot be written
    with pytest.raises(ValueError, match="not writable, expected a file"):
        write_report(tmp_path)


# ---- peaks ----
@pytest.mark.parametrize(
    "device, capability, row",
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), "H100"),
        ("NVIDIA H100 PCIe", (9, 0), "H100 PCIe"),
        ("NVIDIA H200", (9, 0), "H200"),
        ("NVIDIA L40S", (8, 9), "L40S"),
        ("NVIDIA L4", (8, 9), "L4"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), "A100"),
        ("Tesla T4", (7, 5), "T4"),
        ("NVIDIA A100-SXM4-80GB", (9, 0), None),
        ("NVIDIA RTX 4090", (8, 9), None),
    ],
)
def test_device_limits(device, capability, row):
    found = device_limits._find(device, capability)
    assert (found and found.name) == row


def test_peaks_are_dense():
    rows = {limit.name: limit for limit in DEVICE_LIMITS}
    assert rows["H100"].gemm_tflops[torch.bfloat16] == 989 and rows["H200"].gemm_tflops[torch.float8_e4m3fn] == 1979
    assert rows["H100"].gmem_bandwidth == 3.35e12 and rows["A100"].gemm_tflops[torch.float32] == 156
    assert torch.bfloat16 not in rows["V100"].gemm_tflops
    for limit in DEVICE_LIMITS:
        assert limit.source and limit.gmem_bandwidth < 1e13


# ---- the size that the bars name ----
@pytest.fixture
def build_dir():
    path = os.environ.get("XFORMERS_BUILD_DIR")
    return Path(path).absolute() if path else Path(__file__).parents[2] / "build/release"
