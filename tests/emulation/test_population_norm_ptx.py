"""population_norm's kernels as Triton compiles them: their PTX, interpreted, against float64.

The interpreter also reports lanes that store different values in one place: with multiply-adds
fused, the sums of squares did.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from emulation.triton_kernels import interpret
from test_population_norm import CASES, TOLERANCE, error, strange

ARCHITECTURES = [80, 90, 100]  # from 90 on, 16-bit tiles are moved by stmatrix


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [*CASES, "strange"])
def test_compiled_kernels_agree_with_float64(name: str, architecture: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from mdcp_fast.ops.triton import population_norm as kernels

    x, masks, weight, bias = strange() if name == "strange" else CASES[name].arguments()
    launch = kernels.layout(x, len(masks))
    means, deviations = torch.full((2, *masks.shape, launch.splits), torch.nan)  # poisoned
    out = torch.full_like(x, torch.nan)
    run = partial(
        interpret,
        constants={"ROWS": launch.rows, "CHANNELS": launch.channels},
        options=kernels.COMPILE_OPTIONS,
        architecture=architecture,
        programs=launch.programs,
    )
    run(kernels.moments_kernel, (x, masks, means, deviations, *launch.sizes))
    given = x, masks, weight, bias, means, deviations, out, 1e-5**0.5
    run(kernels.normalise_kernel, (*given, *launch.sizes))
    assert error(out, x, masks, weight, bias) <= TOLERANCE[x.dtype]
