"""The trained networks of the quality benchmark: made once, so that all machines measure the same.

python benchmarks/quality/networks.py resnet20 vgg --cache benchmarks/weights

made those in the folder; others are trained on first use and kept in a cache folder.

Training is plain: crops and flips, SGD with one learning-rate cycle, float32. Fashion-MNIST comes
from Debian's package dataset-fashion-mnist, from a copy that torchvision left below ./data, or by
torchvision's own download into the cache folder.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mdcp_fast.app.datasets import Data, load_data
from mdcp_fast.app.models import load_weights, make_model

WEIGHTS = Path(__file__).parents[1] / "weights"
BATCH = 128
WEIGHT_DECAY = 5e-4
PAD = 2  # pixels that a crop may be shifted by


class VGG(nn.Module):
    """Six 3x3 convolutions with BatchNorm, a halving after each two, one linear layer at the end.

    After Simonyan and Zisserman, ICLR 2015, with the widths scaled to images of 28 x 28.
    """

    WIDTHS = (32, 32, 64, 64, 128, 128)

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for index, width in enumerate(self.WIDTHS):
            layers += [
                nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            if index % 2:
                layers.append(nn.MaxPool2d(2))
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * 9, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@dataclass(frozen=True)
class Network:
    """A network of the benchmark and how it is trained.

    Attributes:
        data: A name for `mdcp_fast.load_data`.
        epochs: Passes over the training images.
        lr: Highest learning rate.
        flips: Whether a mirrored image shows the same thing.
        title: For tables and figures.
    """

    data: str
    epochs: int
    lr: float
    flips: bool
    title: str


NETWORKS = {
    "resnet20": Network("fashion-mnist", 6, 0.2, True, "ResNet-20, Fashion-MNIST"),
    "vgg": Network("fashion-mnist", 5, 0.1, True, "VGG with BatchNorm, Fashion-MNIST"),
    "digits-resnet": Network("digits", 15, 0.1, False, "small ResNet, 8x8 digits"),
}


def default_cache() -> Path:
    """The user's cache folder for this benchmark."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "mdcp_fast", "quality")


def data_of(name: str, cache: Path) -> Data:
    """The data that a network is trained on; downloaded by torchvision if there is no copy."""
    wanted = NETWORKS[name].data
    if wanted != "fashion-mnist":
        return load_data(wanted)
    try:
        return load_data(wanted)
    except ValueError as error:
        raw = cache / "FashionMNIST" / "raw"
        if not raw.is_dir():
            _download(cache, error)
        return load_data(f"{wanted}:{raw}")


def _download(cache: Path, missing: ValueError) -> None:
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(os.fspath(cache), download=True)
    except Exception as error:  # no torchvision, no network, a broken copy
        raise SystemExit(
            f"{missing}\nand torchvision could not fetch it: {type(error).__name__}: {error}"
        ) from error


def build(name: str) -> nn.Module:
    """The network with random weights that depend on nothing else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "vgg":
            model: nn.Module = VGG()
        else:
            model = make_model(name, num_classes=10, in_channels=1)
    return model.to(memory_format=torch.channels_last)


def trained(name: str, cache: Path, epochs: int | None = None) -> nn.Module:
    """The trained network, in evaluation mode: as committed, from the cache, or trained now.

    Args:
        name: One of `NETWORKS`.
        cache: The folder of the weights.
        epochs: Other than the network's own number; kept under another file name.
    """
    settings = NETWORKS[name]
    epochs = settings.epochs if epochs is None else epochs
    file = f"{name}-{epochs}.safetensors"
    model = build(name)
    for folder in (WEIGHTS, cache):
        if (folder / file).is_file():
            load_weights(model, folder / file)
            return model.eval()
    train(model, data_of(name, cache), epochs, settings.lr, settings.flips)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f"{file}.part"
    save_file({key: one.contiguous() for key, one in model.state_dict().items()}, temporary)
    temporary.replace(cache / file)
    return model.eval()


def training_step(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """One step of an optimizer and of its learning rate; the loss before it."""
    loss = F.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    return loss.item()


def train(model: nn.Module, data: Data, epochs: int, lr: float, flips: bool) -> None:
    """Trains in place, with the same batches on every run."""
    images, labels = tensors(data.train)
    generator = torch.Generator().manual_seed(0)
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.25)
    model.train()
    start = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for batch in order.split(BATCH)[: len(images) // BATCH]:
            inputs = augmented(images[batch], flips, generator)
            total += training_step(model, inputs, labels[batch], optimizer, schedule)
        mean = total / (len(images) // BATCH)
        print(
            f"epoch {epoch + 1}: loss {mean:.4f}, {time.perf_counter() - start:.0f} s", flush=True
        )
    model.eval()


def augmented(images: Tensor, flips: bool, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to `PAD` pixels each way, and half of them mirrored.

    Args:
        images: [batch, channels, height, width].
        flips: Whether to mirror.
        generator: Of the random numbers.

    Returns:
        The same shape, channels last.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (PAD, PAD, PAD, PAD), value=float(images.min()))
    shift = torch.randint(0, 2 * PAD + 1, (2, count, 1), generator=generator)
    rows = shift[0] + torch.arange(height)  # [batch, height]
    columns = shift[1] + torch.arange(width)
    if flips:
        mirror = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)  # [batch, channels, height, width], stored channels last


def tensors(part: torch.utils.data.Dataset[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] and labels [N] of a part of `Data` that is held in memory."""
    assert isinstance(part, torch.utils.data.TensorDataset)
    images, labels = part.tensors
    return images, labels


@torch.no_grad()
def accuracy(model: nn.Module, part: tuple[Tensor, Tensor], batch: int = 500) -> float:
    """Share of the images that are classified right."""
    images, labels = part
    right = 0
    for inputs, wanted in zip(images.split(batch), labels.split(batch), strict=True):
        logits = model(inputs.contiguous(memory_format=torch.channels_last))
        right += int((logits.argmax(1) == wanted).sum())
    return right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the networks of the quality benchmark.")
    parser.add_argument("names", nargs="+", choices=NETWORKS)
    parser.add_argument("--cache", type=Path, default=default_cache())
    arguments = parser.parse_args()
    for name in arguments.names:
        model = trained(name, arguments.cache)
        data = data_of(name, arguments.cache)
        scores = {
            part: accuracy(model, tensors(getattr(data, part))) for part in ("validation", "test")
        }
        print(name, {part: f"{score:.2%}" for part, score in scores.items()}, flush=True)


if __name__ == "__main__":
    main()
