"""What nvcc makes of csrc/cuda: resources of every kernel on every architecture, machine code."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
PTX = 120  # what a device newer than all of these compiles for itself
# Beyond csrc/cuda/nvcc.options: each warning, whichever stage has it, is an error.
STRICT = ["-Werror", "all-warnings", "-Xcompiler=-Werror", "-Xptxas=-v"]


class Resources(NamedTuple):
    """What one kernel takes on one architecture."""

    source: str  # ward.cu
    symbol: str  # mangled
    architecture: int  # 90
    registers: int  # of a thread
    stack: int  # bytes of local memory of a thread
    spilled: int  # bytes of registers stored to local memory, of a thread
    shared: int  # bytes of static shared memory of a block
    threads: int  # of a block at most: __launch_bounds__; 0 where there are none


class Instruction(NamedTuple):
    address: int
    opcode: str  # with its suffixes: ATOMS.ADD
    operands: str


def nvcc() -> str | None:
    return shutil.which("nvcc")


def run(*command: str | Path) -> tuple[str, str]:
    """What a command wrote; where it fails, a RuntimeError with that."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


@functools.cache
def cuobjdump() -> str:
    """The toolkit's, or the one that triton brings (nvdisasm lies beside it)."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        folder = Path(triton.origin).parent / "backends" / "nvidia" / "bin"
        found = shutil.which("cuobjdump", path=str(folder))
    if found is None:
        raise RuntimeError("cuobjdump is neither on the PATH nor in an installed triton")
    return found


def sources() -> list[Path]:
    return sorted(ROOT.glob("csrc/cuda/*.cu"))


def compile_kernels(
    paths: Sequence[Path], folder: Path, architectures: Sequence[int] = ARCHITECTURES
) -> dict[Path, list[Resources]]:
    """Compiles sources as the wheel is compiled, and with STRICT.

    Args:
        paths: the .cu files.
        folder: where the objects go, each named after its source.
        architectures: for which to compile.

    Returns:
        The resources of the kernels of each object.

    Raises:
        RuntimeError: a source does not compile without a warning.
    """
    compiler = nvcc()
    assert compiler is not None
    # As setup.py does: up to sm_90 the PTX of our kernels is the same, and made once.
    targets = []
    before_100 = [one for one in architectures if one < 100]
    if before_100:
        codes = ",".join(f"sm_{one}" for one in before_100)
        targets.append(f"-gencode=arch=compute_{min(before_100)},code=[{codes}]")
    targets += [f"-gencode=arch=compute_{one},code=sm_{one}" for one in architectures if one >= 100]
    targets.append(f"-gencode=arch=compute_{PTX},code=compute_{PTX}")
    options = ["-optf", "csrc/cuda/nvcc.options", *STRICT, *targets]

    def compile_one(path: Path) -> tuple[Path, list[Resources]]:
        target = folder / f"{path.stem}.o"
        _, log = run(compiler, *options, "-c", path, "-o", target)
        return target, list(resources(path.name, log, launch_bounds(target)))

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return dict(pool.map(compile_one, paths))


def launch_bounds(binary: Path) -> dict[str, int]:
    """The most threads that a block of each kernel may have, where its PTX says so."""
    bounds = {}
    for entry in run(cuobjdump(), "-ptx", binary)[0].split(".entry ")[1:]:
        head = entry.split("{", 1)[0]
        match = re.search(r"\.(?:max|req)ntid ([\d, ]+)", head)
        if match is not None:
            threads = 1
            for size in match.group(1).split(","):
                threads *= int(size)
            bounds[re.split(r"\W", head, maxsplit=1)[0]] = threads
    return bounds


def resources(source: str, log: str, bounds: dict[str, int]) -> Iterable[Resources]:
    """Reads what ptxas -v wrote."""
    for part in re.split(r"Compiling entry function ", log)[1:]:
        symbol, architecture = re.findall(r"'(\w+)'", part)[:2]
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", part)
        yield Resources(
            source,
            symbol,
            int(architecture.removeprefix("sm_")),
            registers=int(first(r"Used (\d+) registers", part)),
            stack=max(int(stack) for stack, _ in frames),
            spilled=sum(int(spilled) for _, spilled in frames),  # of the functions it calls too
            shared=int(first(r"(\d+) bytes smem", part)),
            threads=bounds.get(symbol, 0),
        )


def first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else "0"


def cubins(binary: Path) -> tuple[list[int], list[int]]:
    """The architectures that an object or a module has machine code for, and PTX for."""
    listed = []
    for what in ("-lelf", "-lptx"):
        done = subprocess.run([cuobjdump(), what, str(binary)], capture_output=True, text=True)
        numbers = re.findall(r"\.sm_(\d+)[af]?\.(?:cubin|ptx)", done.stdout)
        listed.append(sorted({int(number) for number in numbers}))
    return listed[0], listed[1]


def sass(binary: Path, architecture: int) -> dict[str, list[Instruction]]:
    """The machine code of every kernel of an object or a module."""
    listing, _ = run(cuobjdump(), "-sass", "-arch", f"sm_{architecture}", binary)
    code: dict[str, list[Instruction]] = {}
    line = re.compile(
        r"/\*([0-9a-f]{4,})\*/ +(?:\{ *)?(?:@!?U?P\w+ +)?([A-Z][\w.]*) *(.*?) *;", re.MULTILINE
    )
    for part in re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]:
        symbol = part.split(maxsplit=1)[0]
        code[symbol] = [
            Instruction(int(address, 16), opcode, operands)
            for address, opcode, operands in line.findall(part)
        ]
    return code


def innermost_loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """The bodies of the loops that hold no other loop."""
    spans = []
    for one in code:
        target = re.search(r"0x([0-9a-f]+)$", one.operands)
        if one.opcode.startswith("BRA") and target is not None:
            begin = int(target.group(1), 16)
            if begin < one.address:  # a branch to itself only ends the kernel
                spans.append((begin, one.address))
    inner = [
        (begin, end)
        for begin, end in set(spans)
        if not any(begin <= a and b <= end and (a, b) != (begin, end) for a, b in spans)
    ]
    return [[one for one in code if begin <= one.address <= end] for begin, end in sorted(inner)]


def compare_and_swaps(code: Sequence[Instruction]) -> list[Instruction]:
    """Atomics that the architecture lacks, made of compare-and-swap loops (ATOMS.CAST.SPIN)."""
    return [one for one in code if re.match(r"ATOM[GS]?\.(\w+\.)*CAS", one.opcode)]


def readable(symbols: Sequence[str]) -> dict[str, str]:
    """Each mangled name without namespaces of ours, parameters and result: lloyd<3, 128>."""
    done = subprocess.run(
        ["c++filt", "-p"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    names = done.stdout.splitlines()
    cut = [
        re.sub(r"(\(anonymous namespace\)|\bmdcp(::cuda)?|\w*_GLOBAL__N_\w*)::", "", name)
        for name in names
    ]
    cut = [
        re.sub(r"^(void|int) ", "", re.sub(r"\((?:int|bool|unsigned int)\)", "", name))
        for name in cut
    ]
    return dict(zip(symbols, cut, strict=True))


class Loop(NamedTuple):
    """The innermost loop of a Lloyd kernel as it was compiled."""

    instructions: int  # of one pass
    pairs: int  # distances that a thread computes in one pass
    kinds: dict[str, int]

    @property
    def per_pair(self) -> float:
        return self.instructions / self.pairs


def distance_loop(loops: Sequence[Sequence[Instruction]], dimensions: int) -> Loop | None:
    """The loop with the most float32 multiplications: `dimensions` of them are one distance."""
    best: Loop | None = None
    for loop in loops:
        kinds = Counter(one.opcode.split(".")[0] for one in loop)
        pairs = kinds["FMUL"] // dimensions
        if pairs > 0 and (best is None or pairs > best.pairs):
            best = Loop(len(loop), pairs, dict(kinds.most_common()))
    return best
