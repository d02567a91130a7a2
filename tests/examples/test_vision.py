"""cifar_ViT.py and cifar_MetaFormer.py learn, and take images from wherever they are."""

import io
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
import torch
from programs import ROOT
from python_programs import refused, smoke
from xformers.helpers.generated_images import SHAPES, draw_shapes
from xformers.helpers.training import UserError

sys.path.insert(0, str(ROOT / "examples"))
from vision import sources  # noqa: E402
from vision.images import load_images  # noqa: E402

MODELS = {
    "ViT": ("cifar_ViT.py",),
    "Poolformer": ("cifar_MetaFormer.py", "--attention", "pooling"),
    "VAN": ("cifar_MetaFormer.py", "--attention", "visual", "--feedforward", "Conv2DFeedforward"),
}


@pytest.mark.parametrize("name", MODELS)
def test_smoke_beats_its_floor(name, tmp_path):
    """Ten classes: guessing is right once in ten times, softmax regression on the pixels 55 times in a hundred."""
    path, *arguments = MODELS[name]
    report, last = smoke(path, tmp_path / "report.json", *arguments)
    assert report["source"] == "generated shapes"
    assert report["test_accuracy"] > 0.65 > report["softmax_regression_accuracy"] > 0.4, report
    assert f"test accuracy {report['test_accuracy']:.4f}" in last


def test_shapes_are_drawn_again():
    images, labels = draw_shapes(1200, 3)
    again, same = draw_shapes(1200, 3)
    assert torch.equal(images, again) and torch.equal(labels, same)
    assert images.shape == (1200, 3, 32, 32) and len(labels.unique()) == len(SHAPES)
    other, _ = draw_shapes(1200, 4)
    assert not torch.equal(images, other)


def batch_of(images: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({b"data": images.reshape(len(images), -1), b"labels": labels}, protocol=2)


def cifar(path, contents: dict[str, bytes]):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def cifar_files(count=20):
    images = np.random.default_rng(0).integers(0, 256, (6, count, 3, 32, 32), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return images, {
        name: batch_of(part, [i % 10 for i in range(count)]) for name, part in zip(names, images, strict=True)
    }


def test_cifar_archive(tmp_path):
    images, files = cifar_files()
    found = sources.of_path(str(cifar(tmp_path / "cifar.tar.gz", files)), 0)
    assert torch.equal(found.train[0], torch.from_numpy(images[:5].reshape(-1, 3, 32, 32)))
    assert torch.equal(found.test[0], torch.from_numpy(images[5]))
    assert found.test[1].tolist() == [i % 10 for i in range(20)]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("damage", ["truncated", "missing", "harmful", "no archive", "counts"])
def test_damaged_archive_is_one_sentence(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, files = cifar_files()
    if damage == "missing":
        del files["data_batch_3"]
    if damage == "harmful":
        files["data_batch_3"] = pickle.dumps(Harmful())
    if damage == "counts":
        files["data_batch_3"] = batch_of(images[0], [1, 2])
    path = cifar(tmp_path / "cifar.tar.gz", files)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:40_000])
    if damage == "no archive":
        path.write_text("no archive")
    with pytest.raises(UserError, match="Fix: "):
        sources.of_path(str(path), 0)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("parted", [False, True])
def test_folder_of_images(parted, tmp_path):
    from PIL import Image

    for part in ("train", "test") if parted else (".",):
        for label, colour in enumerate(("red", "blue")):
            (tmp_path / part / colour).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (40, 50), colour).save(tmp_path / part / colour / f"{i}.png")
            assert label < 2
    found = sources.of_path(str(tmp_path), 0)
    assert found.classes == 2 and len(found.train[1]) == (20 if parted else 16)
    blue, red = (found.train[0][found.train[1] == label].float().mean((0, 2, 3)).tolist() for label in (0, 1))
    assert blue == [0, 0, 255] and red == [255, 0, 0]
    (tmp_path / ("train/red" if parted else "red") / "9.png").write_text("no image")
    with pytest.raises(UserError, match="9.png is damaged"):
        sources.of_path(str(tmp_path), 0)


def test_parts_share_no_image():
    images = load_images("generated", 0, 300)
    parts = [{x.numpy().tobytes() for x in getattr(images, part)[0]} for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [300, 34, 150]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.parametrize("name", ["fashion-mnist", "digits"])
def test_real_images(name):
    if why := sources.missing(name):
        pytest.skip(why)
    images = load_images(name, 0)
    assert images.train[0].shape[1:] == (3, 32, 32) and images.classes == 10
    assert len(images.train[1]) + len(images.validation[1]) + len(images.test[1]) in (70_000, 1_797)


def test_no_such_data():
    assert "no such file" in refused("cifar_ViT.py", "--smoke", "--data", "/nowhere")
