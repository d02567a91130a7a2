"""A run can be stopped in any way and goes on as if nothing had happened."""

import json
import re
import resource
import signal
import time

import pytest
from programs import TINY

# Dropout makes the random state count.
LONG = ("--steps", 400, "--dropout", 0.1, "--save-every", 5, "--evals", 4)


@pytest.fixture(scope="module")
def uninterrupted(microgpt, text, tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "report.json"
    microgpt.succeeds("train", "--text", text, *TINY, *LONG, "--report", path)
    return curves(path)


@pytest.fixture
def saved(microgpt, train, tmp_path):
    """A good checkpoint."""
    path = tmp_path / "model.ckpt"
    microgpt.succeeds(*train, "--steps", 3, "--checkpoint", path)
    return path


def curves(path):
    report = json.loads(path.read_text())
    return [[(point["step"], point["bits_per_byte"]) for point in report[name]] for name in ("train", "validation")]


def wait_for_saves(process, path, count):
    """Returns once the checkpoint has been replaced `count` times."""
    seen = set()
    deadline = time.monotonic() + 60
    while len(seen) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.002)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_resumed_run_equals_uninterrupted_run(microgpt, train, uninterrupted, tmp_path, how):
    checkpoint, report = tmp_path / "model.ckpt", tmp_path / "report.json"
    arguments = (*train, *LONG, "--checkpoint", checkpoint, "--report", report)
    process = microgpt.start(*arguments)
    wait_for_saves(process, checkpoint, 4)
    process.send_signal(how)
    out, _ = process.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert process.returncode == -how
        assert not report.exists()
    else:
        assert process.returncode == 128 + how
        assert f"saved {checkpoint}; go on with --resume" in out

    resumed = microgpt.succeeds(*arguments, "--resume")
    step = int(re.search(r"at step (\d+)", resumed)[1])
    assert 0 < step < 400
    if how == signal.SIGKILL:
        assert step % 5 == 0  # the last save
    else:
        assert step == int(re.search(r"stopped after (\d+) steps", out)[1])  # nothing is lost
    assert curves(report) == uninterrupted


def test_keeps_an_existing_checkpoint(microgpt, train, saved):
    before = saved.read_bytes()
    message = microgpt.fails(*train, "--steps", 3, "--checkpoint", saved)
    assert "exists" in message and "--resume" in message and "--overwrite" in message
    assert saved.read_bytes() == before
    microgpt.succeeds(*train, "--steps", 4, "--checkpoint", saved, "--overwrite")
    assert saved.read_bytes() != before


def damages():
    def flip(place):
        def damage(data):
            position = int(len(data) * place)
            return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]

        return damage

    yield "empty", lambda data: b"", "is not a microgpt checkpoint"
    yield "other", lambda data: b"PK\x03\x04" + data, "is not a microgpt checkpoint"
    yield "zeros", lambda data: bytes(len(data)), "is not a microgpt checkpoint"
    yield "half", lambda data: data[: len(data) // 2], "is damaged or cut short"
    yield "last byte missing", lambda data: data[:-1], "is damaged or cut short"
    for place in (0.01, 0.3, 0.7, 0.99):
        yield f"bit flipped at {place}", flip(place), "is damaged or cut short"


def test_damaged_checkpoint(microgpt, train, saved):
    good = saved.read_bytes()
    for name, damage, complaint in damages():
        bad = damage(good)
        saved.write_bytes(bad)
        message = microgpt.fails(*train, "--steps", 9, "--checkpoint", saved, "--resume")
        assert complaint in message and str(saved) in message, name
        assert saved.read_bytes() == bad, name
    assert complaint in microgpt.fails("sample", "--checkpoint", saved)


def test_missing_checkpoint(microgpt, train, tmp_path):
    missing = tmp_path / "missing.ckpt"
    assert "No such file" in microgpt.fails(*train, "--checkpoint", missing, "--resume")
    assert "No such file" in microgpt.fails("sample", "--checkpoint", missing)
    assert "--checkpoint" in microgpt.fails(*train, "--resume")


def test_checkpoint_of_another_model(microgpt, train, saved):
    before = saved.read_bytes()
    message = microgpt.fails(*train, "--steps", 9, "--checkpoint", saved, "--resume", "--layers", 3)
    assert "holds another model: 2 layers" in message and "this run has 3 layers" in message
    assert saved.read_bytes() == before


def test_other_text_is_noticed(microgpt, train, saved, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else\n" * 200)
    arguments = ("--checkpoint", saved, "--resume", "--steps", 4)
    assert "the text is not the one" not in microgpt.succeeds(*train, *arguments)
    assert "the text is not the one" in microgpt.succeeds(*train, *arguments, "--text", other)


def test_full_disk_leaves_the_last_checkpoint(microgpt, train, saved):
    before = saved.read_bytes()
    limit = len(before) // 2

    def shrink_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    message = microgpt.fails(*train, "--steps", 9, "--checkpoint", saved, "--resume", preexec_fn=shrink_disk)
    assert "cannot write" in message and "File too large" in message
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]  # nothing half-written is left behind
    microgpt.succeeds(*train, "--steps", 4, "--checkpoint", saved, "--resume")


@pytest.mark.parametrize("option", ["--checkpoint", "--report"])
def test_places_that_cannot_be_written(microgpt, train, tmp_path, option):
    assert "No space left on device" in microgpt.fails(*train, "--steps", 1, option, "/dev/full")
    assert "No such file" in microgpt.fails(*train, "--steps", 1, option, tmp_path / "missing" / "file")
    assert "folder" in microgpt.fails(*train, "--steps", 1, option, tmp_path)


def test_link_stays_a_link(microgpt, train, tmp_path):
    target, link = tmp_path / "target.ckpt", tmp_path / "link.ckpt"
    target.touch()
    link.symlink_to(target)
    microgpt.succeeds(*train, "--steps", 1, "--checkpoint", link, "--overwrite")
    assert link.is_symlink() and target.stat().st_size > 0


def test_sample(microgpt, train, saved):
    arguments = ("sample", "--checkpoint", saved, "--bytes", 40, "--prompt", "the method")
    once = microgpt.succeeds(*arguments)
    assert once.startswith("the method")
    assert microgpt.succeeds(*arguments) == once
    assert microgpt.succeeds(*arguments, "--seed", 2) != once
    surest = microgpt.succeeds(*arguments, "--temperature", 0)
    assert surest == microgpt.succeeds(*arguments, "--top-k", 1)
    assert surest == microgpt.succeeds(*arguments, "--temperature", 0, "--attention", "vanilla")
    assert microgpt.succeeds("sample", "--checkpoint", saved, "--bytes", 0) == "def \n"
