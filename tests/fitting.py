"""A network whose layers can all be fitted, and how far a network is from another one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Deep(nn.Module):
    """Layers that read what pruned layers wrote: convolutions and BatchNorm, then linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.b, self.bn_b = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.up, self.bn_up = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=2), nn.BatchNorm2d(8)
        self.dw, self.c = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 3, stride=3)
        self.fc, self.head = nn.Linear(6 * 9, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_a(self.a(x)).relu()
        x = self.bn_b(self.b(x)).relu()
        x = self.c(self.dw(self.bn_up(self.up(x)).relu())).relu()
        return self.head(self.fc(x.flatten(1)).relu())


def trained_like(model: nn.Module) -> nn.Module:
    """Statistics and scales that are not 0 and 1, as after training."""
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.2, 1)  # type: ignore[union-attr, operator]
            module.bias.data.normal_(std=0.3)
    return model.eval()


def error(small: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - dense(x)).square().sum())
