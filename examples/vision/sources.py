"""Where images come from: uint8 images [count, 3, 32, 32] and labels, for training and for testing."""

import gzip
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from xformers.helpers.generated_images import draw_shapes
from xformers.helpers.plain_pickle import load_plain_pickle
from xformers.helpers.training import UserError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
INSTEAD = "pass another --data, or leave it out for what is there"
Part = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Found:
    name: str
    classes: int
    train: Part
    test: Part


def three_channels(gray: torch.Tensor) -> torch.Tensor:
    """uint8 [count, height, width] -> [count, 3, 32, 32], with a black border where it is smaller."""
    rows, cols = (32 - n for n in gray.shape[1:])
    padded = torch.nn.functional.pad(gray, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
    return padded[:, None].expand(-1, 3, -1, -1).contiguous()


def _idx(path: Path, dims: int) -> torch.Tensor:
    """A file of the MNIST family: 2 zero bytes, 8 (bytes), the number of dimensions, big-endian sizes, the elements."""
    try:
        raw = gzip.decompress(path.read_bytes())
        sizes = np.frombuffer(raw, ">i4", dims, 4).tolist()
        if raw[:4] != bytes((0, 0, 8, dims)):
            raise ValueError("another kind of file")
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(sizes).copy())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}).  Fix: reinstall dataset-fashion-mnist, or {INSTEAD}") from error


def fashion_mnist(seed: int, limit: int | None) -> Found:
    """60,000 and 10,000 pictures of clothes, 28 x 28 grey (Xiao et al., arXiv:1708.07747)."""
    parts = []
    for part in ("train", "t10k"):
        images = _idx(FASHION_MNIST / f"{part}-images-idx3-ubyte.gz", 3)
        labels = _idx(FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz", 1)
        parts.append((three_channels(images), labels.long()))
    return Found("Fashion-MNIST of the package dataset-fashion-mnist", 10, *parts)


def digits(seed: int, limit: int | None) -> Found:
    """scikit-learn's 1,797 written digits, 8 x 8, upsampled; every fifth is for the test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    gray = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(gray, size=32, mode="bilinear").round().clamp(0, 255).byte()
    images, labels = large.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data.target).long()
    test = torch.arange(len(labels)) % 5 == 4
    return Found("scikit-learn's digits", 10, (images[~test], labels[~test]), (images[test], labels[test]))


def generated(seed: int, limit: int | None) -> Found:
    """Ten kinds of shapes, drawn: 50,000 and 10,000, or as many as `limit` leaves of them."""
    train, test = (50_000, 10_000) if limit is None else (min(50_000, limit * 10 // 9 + 10), min(10_000, limit))
    return Found("generated shapes", 10, draw_shapes(train, seed), draw_shapes(test, seed + 1))


NAMED = {"fashion-mnist": fashion_mnist, "digits": digits, "generated": generated}


def missing(name: str) -> str | None:
    """Why a named source is not there, and what to do; None where it is."""
    if name == "fashion-mnist" and not (FASHION_MNIST / "train-images-idx3-ubyte.gz").exists():
        return f"{FASHION_MNIST} is not there.  Fix: apt-get install dataset-fashion-mnist, or {INSTEAD}"
    if name == "digits":
        try:
            import sklearn.datasets  # noqa: F401
        except ImportError:
            return f"scikit-learn is not installed.  Fix: pip install scikit-learn, or {INSTEAD}"
    return None


def of_path(data: str, seed: int) -> Found:
    """A CIFAR-10 archive for Python (cifar-10-python.tar.gz, or the folder it unpacks to), or a folder of images."""
    path = Path(data)
    if path.is_file():
        return _cifar_archive(path)
    if (path / "data_batch_1").exists():
        return _cifar({file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}, path)
    if path.is_dir():
        return _folder(path, seed)
    raise UserError(f"--data {data}: there is no such file or folder, nor a source of this name.  Fix: {INSTEAD}")


def _cifar_archive(path: Path) -> Found:
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and "_batch" in m.name]
            files = {Path(m.name).name: archive.extractfile(m).read() for m in members}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged or no archive ({error}).  Fix: fetch it again, or {INSTEAD}") from error
    return _cifar(files, path)


def _cifar(files: dict[str, bytes], path: Path) -> Found:
    parts = []
    for names in ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]):
        images, labels = [], []
        for name in names:
            if name not in files:
                raise UserError(
                    f"{path} has no {name}, expected CIFAR-10 for Python.  Fix: fetch it again, or {INSTEAD}"
                )
            try:
                batch = load_plain_pickle(files[name])
                images.append(torch.from_numpy(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).copy()))
                labels.append(torch.tensor(batch[b"labels"]))
                if len(images[-1]) != len(labels[-1]):
                    raise ValueError(f"{len(images[-1])} images, {len(labels[-1])} labels")
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"{path}: {name} is damaged ({error}).  Fix: fetch it again, or {INSTEAD}") from error
        parts.append((torch.cat(images), torch.cat(labels)))
    return Found(f"CIFAR-10 from {path}", 10, *parts)


def _folder(path: Path, seed: int) -> Found:
    """<class>/<image>, with train/ and test/ above them or not; without, every fifth image is for the test."""
    from PIL import Image, UnidentifiedImageError

    def read(root: Path, classes: list[str]) -> Part:
        images, labels = [], []
        for label, name in enumerate(classes):
            for file in sorted((root / name).iterdir()):
                if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm"):
                    continue
                try:
                    with Image.open(file) as image:
                        images.append(np.asarray(image.convert("RGB").resize((32, 32))).transpose(2, 0, 1))
                except (UnidentifiedImageError, OSError) as error:
                    raise UserError(f"{file} is damaged or no image.  Fix: remove it") from error
                labels.append(label)
        if not images:
            raise UserError(f"{root}: no images, expected folders of them, one a class.  Fix: {INSTEAD}")
        return torch.from_numpy(np.stack(images)), torch.tensor(labels)

    parted = (path / "train").is_dir() and (path / "test").is_dir()
    root = path / "train" if parted else path
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    images, labels = read(root, classes)
    if parted:
        return Found(f"images of {path}", len(classes), (images, labels), read(path / "test", classes))
    test = torch.arange(len(labels)) % 5 == 4
    return Found(f"images of {path}", len(classes), (images[~test], labels[~test]), (images[test], labels[test]))
