"""Data sets that the command line can name, each split into training, validation and test data.

The split is fixed: the test data are the same for every seed, and the validation data are never
among them.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from mdcp_fast.app.imports import imported

KNOWN = "digits, fashion-mnist, fashion-mnist:FOLDER, folder:FOLDER, module:function"
SPLIT_SEED = 0

# Where the Debian package dataset-fashion-mnist and torchvision.datasets.FashionMNIST("data") put
# their files.
FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw")
FASHION_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Data:
    """Images with classes, in three parts.

    Attributes:
        name: What it was loaded by.
        train: To fit weights; may be augmented. Items are (float32 image [channels, height, width],
            class).
        validation: To choose among epochs and settings.
        test: To report accuracy, and for nothing else.
        input_shape: (channels, height, width).
        classes: How many there are.
    """

    name: str
    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, int, int]
    classes: int


def load_data(name: str) -> Data:
    """Loads a data set by name; nothing is downloaded.

    Args:
        name: "digits": scikit-learn's 1,797 images of 8x8 pixels, split 60:20:20 within each class.
            "fashion-mnist" (or "fashion-mnist:FOLDER"): 70,000 images of 28x28 pixels; a twelfth of
            its training data is for validation. The files are found in FOLDER, in those of the
            Debian package dataset-fashion-mnist, or where torchvision puts them below ./data.
            "folder:FOLDER": one folder of images per class, read by torchvision and cut to 224x224,
            below FOLDER/train, FOLDER/val and FOLDER/test. Without test, val is the test data and a
            tenth of train is for validation; without any of them the classes lie in FOLDER itself
            and are split 80:10:10. "module:function": is imported and called, and returns a `Data`.

    Returns:
        The training, validation and test sets, and what a network needs to know of them.

    Raises:
        TypeError: `name` is not a string, or a user's function does not return a `Data`.
        ValueError: There is no such data set, its files are missing or damaged.
        ImportError: It needs torchvision, which is not installed.
    """
    if not isinstance(name, str):
        raise TypeError(f"load_data: name: expected a string, got {type(name).__name__}")
    kind, _, rest = name.partition(":")
    if name == "digits":
        return _digits()
    if kind == "fashion-mnist":
        return _fashion_mnist(name, (rest,) if rest else FASHION_FOLDERS)
    if kind == "folder" and rest:
        return _folder(name, Path(rest))
    if not rest:
        raise ValueError(f"load_data: name: expected one of {KNOWN}, got {name!r}")
    data = imported("load_data", name)()
    if not isinstance(data, Data):
        raise TypeError(
            f"load_data: name: expected {name!r} to return a mdcp_fast.app.datasets.Data, "
            f"got {type(data).__name__}"
        )
    return data


def _digits() -> Data:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)  # [1797, 1, 8, 8], 0 to 16
    targets = torch.from_numpy(bunch.target).long()
    return _in_memory("digits", images, targets, stratified(targets, (0.6, 0.2, 0.2)))


def _fashion_mnist(name: str, folders: tuple[str, ...]) -> Data:
    parts = []
    for part in ("train", "test"):
        pixels, labels = (_read_idx(_found(file, folders)) for file in FASHION_FILES[part])
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise ValueError(
                "load_data: fashion-mnist: expected images [count, 28, 28] and as many labels, "
                f"got {list(pixels.shape)} and {list(labels.shape)}"
            )
        parts.append((torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels).long()))
    images, targets = (torch.cat(both) for both in zip(*parts, strict=True))
    count = len(parts[0][1])
    train, validation = stratified(targets[:count], (11 / 12, 1 / 12))
    return _in_memory(name, images, targets, (train, validation, torch.arange(count, len(targets))))


def _in_memory(name: str, images: Tensor, targets: Tensor, parts: tuple[Tensor, ...]) -> Data:
    """Standardises all images by the training part's mean and deviation."""
    images = images.float()
    chosen = images[parts[0]]
    images = (images - chosen.mean()) / chosen.std()
    train, validation, test = (TensorDataset(images[part], targets[part]) for part in parts)
    channels, height, width = images.shape[1:]
    return Data(name, train, validation, test, (channels, height, width), int(targets.max()) + 1)


def stratified(targets: Tensor, shares: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Indices of disjoint random parts with the same mixture of classes, always the same ones.

    Args:
        targets: int64 [samples].
        shares: Of each part; they add up to 1.
    """
    from sklearn.model_selection import train_test_split

    parts, rest = [], np.arange(len(targets))
    for share in shares[:-1]:
        try:
            part, rest = train_test_split(
                rest,
                train_size=round(share * len(targets)),
                stratify=targets[rest].numpy(),
                random_state=SPLIT_SEED,
            )
        except ValueError as error:
            raise ValueError(
                f"load_data: expected enough images of every class to split them, got: {error}"
            ) from None
        parts.append(torch.from_numpy(np.sort(part)))
    return (*parts, torch.from_numpy(np.sort(rest)))


def _found(file: str, folders: tuple[str, ...]) -> Path:
    for folder in folders:
        for candidate in (Path(folder, f"{file}.gz"), Path(folder, file)):
            if candidate.is_file():
                return candidate
    raise ValueError(
        f"load_data: fashion-mnist: expected {file}.gz in {' or '.join(folders)}, "
        "got no such file; name its folder by fashion-mnist:FOLDER, or install Debian's "
        "dataset-fashion-mnist"
    )


def _read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An array in MNIST's IDX format.

    Two zero bytes, the type, the number of dimensions, big-endian sizes, values.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(
            f"load_data: expected {os.fspath(path)!r} to be a whole gzip file, got: {error}"
        ) from error
    header = np.frombuffer(content[:4], np.uint8).tolist()
    if len(header) < 4 or header[:3] != [0, 0, 8]:
        raise ValueError(
            f"load_data: expected {os.fspath(path)!r} to hold bytes in IDX format, "
            f"got it to start with {bytes(header)!r}"
        )
    start = 4 + 4 * header[3]
    shape = np.frombuffer(content[4:start], ">u4").astype(np.int64)
    values = np.frombuffer(content, np.uint8, offset=min(start, len(content)))
    if len(shape) != header[3] or len(values) != shape.prod():
        raise ValueError(
            f"load_data: expected {os.fspath(path)!r} to hold {shape.tolist()} bytes, "
            f"got {len(values)}"
        )
    return values.reshape(shape).copy()


def _folder(name: str, root: Path) -> Data:
    try:
        from torchvision import datasets, transforms
    except ImportError as error:
        raise ImportError(
            f"load_data: name: got {name!r}, which needs torchvision: pip install torchvision"
        ) from error
    if not root.is_dir():
        raise ValueError(f"load_data: name: expected {os.fspath(root)!r} to be a folder, got none")
    finish = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    augmented = transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *finish]
    )
    plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *finish])

    def read(folder: Path, transform: Callable[[Any], Any]) -> Any:
        try:
            return datasets.ImageFolder(os.fspath(folder), transform)
        except FileNotFoundError as error:  # no class folders, or one without images
            raise ValueError(
                f"load_data: name: expected a folder of images for each class in "
                f"{os.fspath(folder)!r}, got: {str(error).splitlines()[0]}"
            ) from None

    has = {part for part in ("train", "val", "test") if (root / part).is_dir()}
    if has and not {"train", "val"} <= has:
        raise ValueError(
            f"load_data: name: expected train and val (and perhaps test) in {os.fspath(root)!r}, "
            f"got only {', '.join(sorted(has))}"
        )
    whole = read(root / "train" if has else root, plain)
    augmented_images = read(root / "train" if has else root, augmented)
    targets = torch.tensor(whole.targets)
    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    if "test" in has:
        train, validation, test = (
            augmented_images,
            read(root / "val", plain),
            read(root / "test", plain),
        )
    elif has:
        first, second = stratified(targets, (0.9, 0.1))
        train, validation = Subset(augmented_images, first.tolist()), Subset(whole, second.tolist())
        test = read(root / "val", plain)
    else:
        first, second, third = stratified(targets, (0.8, 0.1, 0.1))
        train, validation = Subset(augmented_images, first.tolist()), Subset(whole, second.tolist())
        test = Subset(whole, third.tolist())
    for part in (validation, test):
        if getattr(part, "classes", whole.classes) != whole.classes:
            raise ValueError(
                f"load_data: name: expected the same classes in all parts of {os.fspath(root)!r}, "
                "got others"
            )
    return Data(name, train, validation, test, (3, 224, 224), len(whole.classes))
