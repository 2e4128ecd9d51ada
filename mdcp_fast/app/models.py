"""Networks that the command line can name: small ones of our own, torchvision's, timm's, yours."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdcp_fast.app.imports import imported
from mdcp_fast.modules.files import AnyPath
from mdcp_fast.modules.torch_files import read_torch_file

KNOWN = "digits-resnet, resnet20, torchvision:NAME, timm:NAME, module:function"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for small images: stem, stages of `BasicBlock`s, mean, linear classifier.

    Args:
        widths: Channels of each stage; every stage but the first halves the image.
        blocks: Blocks of each stage.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """

    def __init__(
        self, widths: tuple[int, ...], blocks: int, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for index, width in enumerate(widths):
            first = BasicBlock(inputs, width, stride=1 if index == 0 else 2)
            stages.append(
                nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))
            )
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))


def digits_resnet(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """For 8x8 images: three stages of 32, 64 and 128 channels with one block each."""
    return SmallResNet((32, 64, 128), 1, num_classes, in_channels)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-20 for small images (He et al., CVPR 2016, section 4.2), shortcuts by projection."""
    return SmallResNet((16, 32, 64), 3, num_classes, in_channels)


OWN: dict[str, Callable[..., nn.Module]] = {"digits-resnet": digits_resnet, "resnet20": resnet20}


def make_model(
    name: str, num_classes: int | None = None, in_channels: int | None = None
) -> nn.Module:
    """Builds a network by name, with random weights.

    Args:
        name: "digits-resnet" or "resnet20"; "torchvision:resnet50" or just "resnet50"; "timm:NAME";
            or "module:function", which is imported and called with those of `num_classes` and
            `in_channels` that were given.
        num_classes: Outputs; None is the network's own default.
        in_channels: Channels of the images; None is the network's own default.

    Returns:
        The network, in training mode.

    Raises:
        TypeError: `name` is not a string, or a user's function does not return a module.
        ValueError: No network has this name, or it cannot have so many input channels.
        ImportError: It needs a package that is not installed; the message says which.
    """
    if not isinstance(name, str):
        raise TypeError(f"make_model: name: expected a string, got {type(name).__name__}")
    sizes = {
        key: value
        for key, value in (("num_classes", num_classes), ("in_channels", in_channels))
        if value is not None
    }
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"make_model: {key}: expected an integer of at least 1, got {value!r}")
    if name in OWN:
        return OWN[name](**sizes)
    package, _, rest = name.partition(":")
    if package == "timm" and rest:
        return _from_timm(rest, num_classes, in_channels)
    if package == "torchvision" or not rest:
        return _from_torchvision(rest if package == "torchvision" else name, name, sizes)
    function = imported("make_model", name)
    accepted = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):
        names = {parameter.name for parameter in accepted}
        sizes = {key: value for key, value in sizes.items() if key in names}
    model = function(**sizes)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"make_model: name: expected {name!r} to return a torch.nn.Module, "
            f"got {type(model).__name__}"
        )
    return model


def _from_torchvision(name: str, given: str, sizes: dict[str, int]) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError(
            f"make_model: name: expected one of {KNOWN}, got {given!r}, which only torchvision may "
            "have: pip install torchvision"
        ) from error
    if name not in models.list_models():
        raise ValueError(
            f"make_model: name: expected one of {KNOWN}, got {given!r}"
            f"{_similar(name, models.list_models())}"
        )
    channels = sizes.pop("in_channels", 3)
    if channels != 3:
        raise ValueError(
            f"make_model: in_channels: expected 3 for torchvision's {name}, got {channels}"
        )
    return models.get_model(name, weights=None, **sizes)


def _from_timm(name: str, num_classes: int | None, in_channels: int | None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"make_model: name: got 'timm:{name}', which needs timm: pip install timm"
        ) from error
    if not timm.is_model(name):
        raise ValueError(
            f"make_model: name: expected a model of timm, got {name!r}"
            f"{_similar(name, timm.list_models())}"
        )
    options: dict[str, Any] = {}
    if num_classes is not None:
        options["num_classes"] = num_classes
    if in_channels is not None:
        options["in_chans"] = in_channels
    return timm.create_model(name, pretrained=False, **options)


def _similar(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, [*OWN, *names], n=3)
    return f"; similar names: {', '.join(close)}" if close else ""


def load_weights(model: nn.Module, path: AnyPath) -> None:
    """Loads a state_dict into a network, without running any code from the file.

    Args:
        model: The network; changed only if everything fits.
        path: A .safetensors file, or one that torch.save wrote (read with weights_only=True). A
            checkpoint that keeps the state_dict under "state_dict" or "model" will do, and so will
            names that start with "module." (DDP).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds anything but tensors, or belongs to another network.
    """
    path = Path(os.fsdecode(path))
    if not path.is_file():
        raise FileNotFoundError(
            f"load_weights: path: expected a file of weights, got {os.fspath(path)!r}"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = read_torch_file(path)
    except OSError:
        raise
    except Exception as error:  # safetensors, zipfile and pickle each raise their own
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"load_weights: path: expected a whole file of weights, got {os.fspath(path)!r} "
            f"({type(error).__name__}: {first})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"load_weights: path: expected a state_dict (tensors by name) in {os.fspath(path)!r}, "
            f"got {type(content).__name__}"
        )
    weights = {name.removeprefix("module."): value for name, value in content.items()}
    own = model.state_dict()
    wrong = [
        f"{name} (expected {_shape(own.get(name))}, got {_shape(weights.get(name))})"
        for name in [*own, *(name for name in weights if name not in own)]
        if _shape(own.get(name)) != _shape(weights.get(name))
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"load_weights: path: expected the weights of this {type(model).__name__} in "
            f"{os.fspath(path)!r}, got other tensors: {', '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(weights)


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(list(tensor.shape))
