"""A check that cannot fail is no check: the PTX interpreter reports each planted bug."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from emulation.ptx import Module, PtxError
from emulation.ptx_compile import SAMPLES, launch, nvcc_ptx

N = 300


def planted(name: str, pattern: str, replacement: str, architecture: int = 75) -> Module:
    """The samples' module with one edit of one kernel."""
    text = nvcc_ptx(SAMPLES, architecture)
    start = text.index(f".entry {name}(")
    end = text.find(".entry", start + 1) % (len(text) + 1)
    body, count = re.subn(pattern, replacement, text[start:end], count=1)
    assert count == 1
    return Module(text[:start] + body + text[end:], max_steps=10_000)


# %pX: threads 16 and above.
UPPER_HALF = """.reg .pred %pX;
.reg .b32 %rX;
mov.u32 %rX, %tid.x;
setp.gt.u32 %pX, %rX, 15;
"""


def run_block_sum(module: Module, n: int = 256, block: int = 128) -> None:
    launch(module, "block_sum", 2, block, np.ones(n, np.int32), np.zeros(2, np.int32), n)


def run_mirror(module: Module, shared: int = 400) -> None:
    rows = np.zeros((2, 100), np.float32) + np.arange(100, dtype=np.float32)
    launch(module, "mirror", 2, 100, rows, np.zeros((2, 100), np.float32), shared=shared)


def test_samples_without_an_edit_run() -> None:
    run_block_sum(planted("block_sum", "^", ""))
    run_mirror(planted("mirror", "^", ""))


def reported(message: str) -> Any:
    return pytest.raises(PtxError, match=rf"line \d+: `.*`: thread .* of block .*: .*{message}")


def test_reports_each_missing_barrier() -> None:
    with reported("race: shared memory is read that"):
        run_block_sum(planted("block_sum", r"bar\.sync\s+0;", ""))
    for which, message in enumerate(["read that", "written that", "read that"]):
        before = rf"((?:[\s\S]*?bar\.sync\s+0;){{{which}}}[\s\S]*?)bar\.sync\s+0;"
        with reported(message):
            run_mirror(planted("mirror", before, r"\1"))


def test_reports_a_shifted_bound() -> None:
    a, out = np.arange(N, dtype=np.int32), np.zeros(N, np.int32)
    late = planted("control", r"setp\.ge\.s32", "setp.gt.s32")
    with reported(rf"global access of 4 bytes at .* is out of bounds: {4 * N} bytes into buffer"):
        launch(late, "control", 5, 64, a, out, N)
    with reported("shared access of 4 bytes at 396 is out of bounds: there are 396 bytes"):
        run_mirror(planted("mirror", "^", ""), shared=396)


def test_reports_divergent_shuffles() -> None:
    upper = UPPER_HALF + r"mov.u32 \1, 0;\n@%pX shfl.sync.bfly.b32 \1|"
    module = planted("block_sum", r"shfl\.sync\.bfly\.b32\s+(%r\d+)\|", upper)
    with reported("a lane that the mask names never comes here"):
        run_block_sum(module)
    short = planted("block_sum", r"(mov\.\w+\s+%r\d+, )-1;", r"\g<1>65535;")
    with reported("a lane that its own mask leaves out"):
        run_block_sum(short)
    with reported("shuffle from lane 16, which does not take part"):
        run_block_sum(planted("block_sum", "^", ""), n=32, block=16)


def test_reports_wrong_uses_of_matrices() -> None:
    held, place = np.zeros((4, 32), np.uint32), np.arange(32, dtype=np.int32)

    def run(pattern: str, replacement: str, block: int = 32) -> None:
        out = np.zeros((6, 32), np.uint32), np.zeros((3, 32), np.uint32)
        edited = planted("matrices", pattern, replacement, 90)
        launch(edited, "matrices", 1, block, held, place, *out)

    run("^", "")
    with reported("race: shared memory is read that"):
        run(r"bar\.sync\s+0;", "")
    with reported("lanes of the warp do not take part"):
        run(r"stmatrix", UPPER_HALF + "@%pX ret;\nstmatrix")
    with reported("lanes of the warp do not take part"):
        run("^", "", block=16)
    with reported("misaligned access of 16 bytes"):
        run(r"selp\.b32\s+(%r\d+), (%r\d+), 1, ", r"selp.b32 \1, 8, 1, ")


def test_reports_divergent_barriers() -> None:
    with reported("barrier divergence: 84 threads of the block have ended"):
        run_mirror(planted("mirror", r"bar\.sync\s+0;", UPPER_HALF + "@%pX ret;\nbar.sync 0;"))
    two = "@%pX bra $L__a;\nbar.sync 0;\nbra $L__b;\n$L__a:\nbar.sync 0;\n$L__b:\n"
    with reported("barrier divergence: threads of the block wait at lines"):
        run_mirror(planted("mirror", r"bar\.sync\s+0;", UPPER_HALF + two))


def test_reports_misalignment_and_what_was_never_written() -> None:
    with reported("misaligned access of 4 bytes"):
        run_mirror(
            planted("mirror", r"ld\.shared\.f32\s+(%f\d+), \[(%r\d+)", r"ld.shared.f32 \1, [\2+2")
        )
    with reported("read of shared memory that nothing was written to"):
        run_mirror(planted("mirror", r"(?m)^\s*st\.shared.*$", ""))
    with reported(r"register %\w+ was never written"):
        run_mirror(planted("mirror", r"(?m)^\s*ld\.global.*$", ""))


# The last step of a block's sum as Triton 3.6 writes it: lanes without a value take part.
PARTIAL_SUM = """
.version 7.0
.target sm_75
.address_size 64
.visible .entry partial_sum(.param .u64 out)
{
.reg .pred %p<3>;
.reg .b32 %r<3>;
.reg .f32 %f<6>;
.reg .b64 %rd<4>;
mov.u32 %r1, %tid.x;
setp.lt.u32 %p1, %r1, 4;
setp.lt.u32 %p2, %r1, 1;
@%p1 cvt.rn.f32.u32 %f1, %r1;
shfl.sync.bfly.b32 %f2, %f1, 2, 31, -1;
add.rn.f32 %f3, %f1, %f2;
shfl.sync.bfly.b32 %f4, %f3, 1, 31, -1;
add.rn.f32 %f5, %f3, %f4;
ld.param.u64 %rd1, [out];
mul.wide.u32 %rd2, %r1, 4;
add.s64 %rd3, %rd1, %rd2;
@%p2 st.global.f32 [%rd3], %f5;
ret;
}
"""


@pytest.mark.parametrize(
    ("edit", "replacement", "message"),
    [
        ("", "", None),
        ("@%p2 st", "st", "register %f5 was never written"),
        ("@%p2 st", "setp.gt.f32 %p2, %f5, 0f00000000;\n@%p2 st", "register %f5 was never written"),
        ("%f1, 2, 31", "%f1, 4, 31", "register %f5 was never written"),
        ("@%p2 st", "add.rn.f32 %f5, %f5, %f5;\nst", "register %f5 was never written"),
        (
            "@%p2 st",
            "shfl.sync.idx.b32 %f5, %f5, 31, 31, -1;\n@%p2 st",
            "register %f5 was never written",
        ),
    ],
    ids=[
        "right",
        "stored by all",
        "decides",
        "from a lane without a value",
        "added to itself",
        "shuffled into itself",
    ],
)
def test_reports_what_was_never_written_where_it_matters(
    edit: str, replacement: str, message: str | None
) -> None:
    module, sums = Module(PARTIAL_SUM.replace(edit, replacement)), np.zeros(32, np.float32)
    if message is None:
        launch(module, "partial_sum", 1, 32, sums)
        assert sums.tolist() == [6.0] + [0.0] * 31
        return
    with reported(message):
        launch(module, "partial_sum", 1, 32, sums)


def test_reports_endless_loops_and_unknown_instructions() -> None:
    loop = planted("mirror", r"bar\.sync\s+0;", "$L__again:\nbar.sync 0;\nbra $L__again;")
    with pytest.raises(PtxError, match=r"line \d+: `bra \$L__again;`: no end after 10001 pieces"):
        run_mirror(loop)
    with pytest.raises(PtxError, match=r"line \d+: .*knows: fancy\.rn\.f32"):
        run_mirror(planted("mirror", r"bar\.sync\s+0;", "fancy.rn.f32 %f1, %f2, %f3;"))
    with pytest.raises(PtxError, match="there is no kernel 'nothing'"):
        planted("mirror", "^", "").launch("nothing", (1,), (1,), 0, [], [])
