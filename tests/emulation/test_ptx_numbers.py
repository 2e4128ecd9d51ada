"""The interpreter's arithmetic by itself: rounding, fields of bits, extremes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulation import ptx_numbers as numbers
from emulation.ptx import Module
from emulation.ptx_compile import launch
from emulation.ptx_values import floats, integers, same


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rounding_of_narrow_formats() -> None:
    values = torch.tensor(floats(np.float64, 20)).float().double()
    beyond = 1 + 2**-8 + 2**-40
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, beyond, -beyond], dtype=torch.float64)
    both = torch.cat([values, ties])
    got = numbers.f64_to_bf16(both.numpy())
    expected = [1.0, 1 + 2**-6, 1 + 2**-7, -(1 + 2**-7)]  # the last two are just beyond a tie
    np.testing.assert_array_equal(numbers.bf16_to_f32(got[-4:]), np.float32(expected))
    same(numbers.bf16_to_f32(got[:-4]), values.float().bfloat16().float().numpy())


def test_fields_and_tables() -> None:
    a, b = integers(np.uint32, 21), integers(np.uint32, 22)
    position, length = np.uint32(5), np.uint32(9)
    same(numbers.extract_field(a, position, length), a >> 5 & 511)
    signed = a.view(np.int32)
    same(numbers.extract_field(signed, position, length), (signed << 18) >> 23)
    mask = np.uint32(511 << 5)
    same(numbers.insert_field(a, b, position, length), (b & ~mask) | (a << 5 & mask))
    same(numbers.look_up(a, b, a ^ b, 0x96), a ^ b ^ (a ^ b))
    same(numbers.look_up(a, b, ~a, 0xE8), (a & b) | (a & ~a) | (b & ~a))
    assert numbers.find_highest(np.array([1, 0, 255], np.uint32)).tolist() == [0, 2**32 - 1, 7]
    assert numbers.find_highest(np.array([-1, -2], np.int32)).tolist() == [2**32 - 1, 0]


SMALLEST = """
.version 8.8
.target sm_100a
.address_size 64
.visible .entry smallest(.param .u64 given, .param .u64 found)
{
    .reg .b64 %rd<6>;
    .reg .b32 %r<8>;
    ld.param.b64 %rd1, [given];
    ld.param.b64 %rd2, [found];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.b32 %r2, [%rd4];
    redux.sync.min.f32 %r3, %r2, -1;
    redux.sync.max.abs.NaN.f32 %r4, %r2, -1;
    min.f32 %r5, %r2, 0f3F800000, 0fBF800000;
    st.global.b32 [%rd5], %r3;
    st.global.b32 [%rd5+384], %r4;
    st.global.b32 [%rd5+768], %r5;
    ret;
}
"""


def test_extremes_of_sm_100() -> None:
    """Of a warp's floats, and of three: NaN gives way to numbers unless it is to win."""
    given = floats(np.float32, 30)[:96].reshape(3, 32)
    given[1] = np.nan
    given[2] = abs(given[2])
    given[2, :3] = 0.0, -0.0, np.nan
    found = np.zeros((3, 3, 32), np.float32)
    launch(Module(SMALLEST), "smallest", 1, 96, given, found)
    same(found[0], np.array([[np.nanmin(given[0])], [np.nan], [-0.0]]))
    same(found[1], abs(given).max(1, keepdims=True))
    same(found[2], np.where(np.isnan(given), np.float32(-1), np.minimum(given, np.float32(-1))))


# Triton
