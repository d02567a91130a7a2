"""microgpt on a GPU: it learns, and a checkpoint moves between devices."""

import json

import pytest
import torch
from programs import TINY

NO_GPU = "--device cuda: "


@pytest.fixture(scope="module")
def gpu(microgpt, text):
    """Skips where the program can't compute on a GPU, and says why."""
    done = microgpt("train", "--text", text, *TINY, "--device", "cuda", "--steps", 1)
    if NO_GPU in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu(microgpt, train, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert NO_GPU in microgpt.fails(*train, "--steps", 1, "--device", "cuda")
    report = tmp_path / "report.json"
    microgpt.succeeds(*train, "--steps", 1, "--device", "auto", "--report", report)
    assert json.loads(report.read_text())["device"] == "cpu"


def test_a_gpu_learns_as_the_cpu_does(gpu, microgpt, train, tmp_path):
    losses = {}
    for device in ("cpu", "cuda"):
        report = tmp_path / f"{device}.json"
        microgpt.succeeds(*train, "--steps", 30, "--device", device, "--dtype", "float32", "--report", report)
        losses[device] = [point["bits_per_byte"] for point in json.loads(report.read_text())["train"]]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-3)
    assert losses["cuda"][-1] < losses["cuda"][0] - 1


@pytest.mark.parametrize("first, then", [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_moves_between_devices(gpu, microgpt, train, tmp_path, first, then):
    checkpoint, report = tmp_path / "model.ckpt", tmp_path / "report.json"
    run = (*train, "--dtype", "float32", "--checkpoint", checkpoint)
    microgpt.succeeds(*run, "--device", first, "--steps", 15)
    microgpt.succeeds(*run, "--device", then, "--steps", 30, "--resume", "--report", report)
    points = json.loads(report.read_text())["train"]
    assert [point["step"] for point in points] == list(range(30))
    assert abs(points[15]["bits_per_byte"] - points[14]["bits_per_byte"]) < 0.5
    microgpt.succeeds("sample", "--checkpoint", checkpoint, "--device", first, "--bytes", 5)
