"""Data by name: the split never changes, never overlaps, and never needs the network."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mdcp_fast.app.datasets import load_data, stratified


def targets_of(data: Dataset) -> Tensor:
    return torch.tensor([int(data[i][1]) for i in range(len(data))])


def test_digits_are_split_evenly_and_always_alike() -> None:
    data, again = load_data("digits"), load_data("digits")
    parts = data.train, data.validation, data.test
    assert [len(part) for part in parts] == [1078, 359, 360]
    assert (data.input_shape, data.classes) == ((1, 8, 8), 10)
    for part, twin in zip(parts, (again.train, again.validation, again.test), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part.tensors, twin.tensors, strict=True))
        shares = torch.bincount(targets_of(part)) / len(part)
        assert shares.min() > 0.09 and shares.max() < 0.11
    images, targets = data.train.tensors
    assert images.dtype == torch.float32 and targets.dtype == torch.int64
    assert images.mean().abs() < 1e-5 and abs(images.std().item() - 1) < 1e-5


def test_parts_are_disjoint_and_complete() -> None:
    targets = torch.randint(5, (1000,), generator=torch.Generator().manual_seed(0))
    parts = stratified(targets, (0.5, 0.3, 0.2))
    assert [len(part) for part in parts] == [500, 300, 200]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    with pytest.raises(ValueError, match="expected enough images of every class"):
        stratified(torch.tensor([0, 0, 0, 1]), (0.5, 0.5))


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """240 training and 40 test images in the files' own format, some packed and some not."""
    generator = np.random.default_rng(0)
    for part, count, suffix in (("train", 240, ".gz"), ("t10k", 40, "")):
        images = generator.integers(0, 256, (count, 28, 28))
        images[:, 0, 0] = np.arange(count) % 250
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return tmp_path


def test_fashion_mnist_keeps_its_own_test_set(fashion: Path) -> None:
    data = load_data(f"fashion-mnist:{fashion}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [220, 20, 40]
    assert (data.input_shape, data.classes) == ((1, 28, 28), 10)
    assert torch.equal(targets_of(data.test), torch.arange(40) % 10)
    corner = data.test.tensors[0][:, 0, 0, 0]
    assert (corner.diff() > 0).all()  # images in order, hence with their own labels


def test_damaged_or_missing_fashion_files(fashion: Path, tmp_path: Path) -> None:
    path = fashion / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="to be a whole gzip file"):
        load_data(f"fashion-mnist:{fashion}")
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(ValueError, match=r"to hold \[240, 28, 28\] bytes, got 188159"):
        load_data(f"fashion-mnist:{fashion}")
    path.write_bytes(gzip.compress(b"no"))
    with pytest.raises(ValueError, match="to hold bytes in IDX format"):
        load_data(f"fashion-mnist:{fashion}")
    path.unlink()
    with pytest.raises(ValueError, match="expected train-images-idx3-ubyte.gz in .*no such file"):
        load_data(f"fashion-mnist:{fashion}")


def write_images(folder: Path, per_class: int) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            image.new("RGB", (40, 30), (index, 0, 0)).save(folder / name / f"{index}.png")


def test_folders_with_and_without_parts(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    write_images(tmp_path / "plain", 10)
    data = load_data(f"folder:{tmp_path / 'plain'}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 2, 2]
    assert data.train[0][0].shape == data.input_shape == (3, 224, 224)
    assert data.classes == 2

    write_images(tmp_path / "parts/train", 10)
    write_images(tmp_path / "parts/val", 3)
    data = load_data(f"folder:{tmp_path / 'parts'}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 6]

    write_images(tmp_path / "parts/test", 2)
    data = load_data(f"folder:{tmp_path / 'parts'}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 6, 4]
    first, again = data.validation[0][0], data.validation[0][0]
    assert torch.equal(first, again)  # only training images are augmented


def test_bad_folders(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match="to be a folder"):
        load_data(f"folder:{tmp_path / 'none'}")
    with pytest.raises(ValueError, match="expected a folder of images for each class"):
        load_data(f"folder:{tmp_path}")
    write_images(tmp_path / "train", 2)
    with pytest.raises(ValueError, match=r"expected train and val .* got only train"):
        load_data(f"folder:{tmp_path}")


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_data.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "from mdcp_fast.app.datasets import Data\n"
        "part = TensorDataset(torch.zeros(4, 1, 2, 2), torch.arange(4))\n"
        "def mine():\n    return Data('mine', part, part, part, (1, 2, 2), 4)\n"
        "def other():\n    return part\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_data("users_data:mine").classes == 4
    with pytest.raises(
        TypeError, match="to return a mdcp_fast.app.datasets.Data, got TensorDataset"
    ):
        load_data("users_data:other")


def test_unknown_names_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected one of digits, fashion-mnist.*got 'cifar'"):
        load_data("cifar")
    with pytest.raises(TypeError, match="name: expected a string, got NoneType"):
        load_data(None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        load_data("folder:somewhere")
