"""channel_statistics' kernel as Triton compiles it: its PTX, interpreted, has the CPU op's bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulation.triton_kernels import interpret
from torch import Tensor

from mdcp_fast.ops import channel_statistics as op
from mdcp_fast.ops.channel_statistics import channel_statistics

pytest.importorskip("triton", reason="triton is not installed")

ARCHITECTURES = [80, 90, 100]
# Rows beside the kernel's 8 and 32 to a program, lengths beside its 32 lanes and 128 weights;
# tensors without rows, and of all types at once, each of which is a launch.
SHAPES = [(0, 7), (33, 9), (1, 32), (0, 3), (9, 33), (7, 129), (2, 300), (0, 50)]
TYPES = [torch.float32, torch.float16, torch.bfloat16]


class Interpreted:
    """Takes a kernel's place: kernel[grid](...) runs its PTX."""

    def __init__(self, kernel: Any, architecture: int, memory: list[Tensor]) -> None:
        self.kernel, self.architecture, self.memory = kernel, architecture, memory

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(
            *arguments: Any, num_warps: int, enable_fp_fusion: bool, **constants: Any
        ) -> None:
            interpret(
                self.kernel,
                arguments,
                constants,
                {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion},
                architecture=self.architecture,
                programs=grid[0],
                memory=self.memory,
            )

        return launch


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_kernel_has_the_bits_of_the_native_core(
    architecture: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdcp_fast.ops.triton import channel_statistics as kernels

    generator = torch.Generator().manual_seed(0)
    weights = [
        (torch.randn(shape, generator=generator) * 0.1 + 0.02).to(dtype)
        for dtype in TYPES
        for shape in SHAPES
    ]
    weights.append(torch.stack([torch.zeros(40), torch.full((40,), 0.1), torch.full((40,), -0.1)]))
    weights.append(torch.tensor([[3.0], [-1e-30], [0.0], [-0.0], [1e-45], [-2e38]]))
    expected = torch.cat(channel_statistics(weights))
    out = torch.full_like(expected, torch.nan)  # poisoned
    there = Interpreted(kernels.channel_statistics_kernel, architecture, weights)
    monkeypatch.setattr(kernels, "channel_statistics_kernel", there)
    kernels.launch_channel_statistics(weights, op._row_shapes(weights, "filter"), out)
    assert torch.equal(out, expected)
