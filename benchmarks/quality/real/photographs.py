"""Photographs without a download from a hub: those of Debian's package gcompris-qt-data.

apt-get download gcompris-qt-data && dpkg -x gcompris-qt-data_*.deb unpacked
python benchmarks/quality/real photos unpacked

The package (44 MB, GPL and CC, credits inside) keeps them as WebP inside Qt resource files. There
are 212: animals (1,024 pixels), monuments, and things and fish (short side 240 as a rule).
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from subjects import by_subject
from torch import Tensor

# Those that hold photographs; their other pictures are drawings, which are smaller files.
ACTIVITIES = (
    "categorization",
    "explore_farm_animals",
    "explore_monuments",
    "explore_world_animals",
)
SMALLEST = 4000  # bytes
CALIBRATION_SHARE = 120 / 212  # of the photographs of a split
AREA, RATIO, TRIES = (0.25, 1.0), (3 / 4, 4 / 3), 10  # of a crop: see `crop_box`


def default_photos() -> Path:
    """The folder where the photographs are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "mdcp_fast", "photographs")


def webps(data: bytes) -> Iterator[bytes]:
    """The WebP files inside some bytes, one after another.

    Qt resource files do not compress them, so they can be found by their own headers.
    """
    at = data.find(b"RIFF")
    while at >= 0:
        size = int.from_bytes(data[at + 4 : at + 8], "little") + 8  # the header has 8 bytes
        if data[at + 8 : at + 12] == b"WEBP" and at + size <= len(data):
            yield data[at : at + size]
            at += size - 1
        at = data.find(b"RIFF", at + 1)


def extract(unpacked: Path, folder: Path) -> int:
    """Writes the photographs of an unpacked gcompris-qt-data into a folder.

    Returns:
        How many there are.

    Raises:
        SystemExit: There are none.
    """
    found = 0
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(unpacked.rglob("*.rcc")):
        if path.stem not in ACTIVITIES:
            continue
        for place, picture in enumerate(webps(path.read_bytes())):
            if len(picture) > SMALLEST:
                (folder / f"{path.stem}_{place}.webp").write_bytes(picture)
                found += 1
    if not found:
        raise SystemExit(f"expected gcompris-qt-data, unpacked, in {unpacked}, got no photographs")
    return found


@dataclass(frozen=True)
class Split:
    """Photographs to calibrate on and others to score on, of other subjects.

    Attributes:
        number: Which split, the seed of all that is random in it.
        calibration, held_out: Files, in random order.
    """

    number: int
    calibration: tuple[Path, ...]
    held_out: tuple[Path, ...]


def photographs(folder: Path) -> list[Path]:
    """The files of a folder.

    Raises:
        SystemExit: There are none.
    """
    files = sorted(folder.glob("*.webp"))
    if not files:
        how = __doc__.split("\n\n")[1]
        raise SystemExit(f"expected photographs in {folder}, got none; to have some:\n{how}")
    return files


def split_of(files: Sequence[Path], number: int) -> Split:
    """Splits photographs at random, all of a subject to one side."""
    where = {path.stem: path for path in files}
    groups = by_subject(where)
    draw = random.Random(f"split {number}")
    draw.shuffle(groups)
    wanted = round(CALIBRATION_SHARE * len(files))
    calibration: list[Path] = []
    held_out: list[Path] = []
    for group in groups:
        fits = len(calibration) + len(group) <= wanted
        (calibration if fits else held_out).extend(where[name] for name in group)
    # A group's pictures should not follow one another: few crops are those of the first ones.
    draw.shuffle(calibration)
    draw.shuffle(held_out)
    return Split(number, tuple(calibration), tuple(held_out))


def crops(files: Sequence[Path], count: int, size: int, seed: str) -> Tensor:
    """Random crops, each file in turn: a random part of random shape, half of them mirrored.

    The parts are those of torchvision's RandomResizedCrop with scale (0.25, 1). A crop depends on
    the seed and its place alone, so fewer crops are the first of more.

    Returns:
        uint8 [count, 3, size, size].
    """
    opened: dict[Path, Image.Image] = {}
    made = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for place in range(count):
        path = files[place % len(files)]
        if path not in opened:
            opened[path] = Image.open(path).convert("RGB")
        made[place] = pixels(random_crop(opened[path], size, random.Random(f"{seed} {place}")))
    return made


def random_crop(picture: Image.Image, size: int, draw: random.Random) -> Image.Image:
    """One of `crops`."""
    box = crop_box(picture.width, picture.height, draw)
    cut = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else cut


def crop_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of a picture."""
    for _ in range(TRIES):
        area = width * height * draw.uniform(*AREA)
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** draw.random()
        across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            left, top = draw.randint(0, width - across), draw.randint(0, height - down)
            return left, top, left + across, top + down
    side = min(width, height)  # a picture so long that no part of that area fits
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def centre(path: Path, size: int) -> Tensor:
    """The middle of a picture as ImageNet's networks are tested on: uint8 [3, size, size]."""
    picture = Image.open(path).convert("RGB")
    side = round(min(picture.size) * 7 / 8)  # as 224 of 256
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return pixels(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def pixels(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8 [3, height, width]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def digest(images: Tensor) -> str:
    """The first digits of a hash of images, which tells whether others were measured."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:12]
