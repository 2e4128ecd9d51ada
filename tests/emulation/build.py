"""Builds the native core with its CUDA kernels emulated, and steers the emulator.

Every object is cached under build/emulation by the hash of what went into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11

ROOT = Path(__file__).parents[2]
EMULATION = Path(__file__).parent
CACHE = ROOT / "build" / "emulation"
COMPILER = "g++"

# As in setup.py: nothing may contract a*b+c. Fortified longjmp refuses to change stacks.
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-pthread", "-g1"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", f"-I{ROOT / 'csrc'}"]
KERNEL_FLAGS = ["-x", "c++", "-DMDCP_EMULATION", "-DMDCP_WITH_CUDA", f"-I{EMULATION}"]
KERNEL_FLAGS += ["-include", str(EMULATION / "cuda_emulation.h")]

LaunchHook = Callable[[str, tuple[int, ...], tuple[int, ...], int, list[bytes]], None]
_HOOK_TYPE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_size_t),
)


def run(command: Sequence[str | Path]) -> str:
    """The output of a command; where it fails, a RuntimeError with what it said."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """A short name for these texts and the contents of these files."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        sha.update(data.encode() if isinstance(data, str) else data)
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def headers(*folders: Path) -> list[Path]:
    return sorted(
        path for folder in folders for path in folder.rglob("*") if path.suffix in (".h", ".cuh")
    )


def compile_object(source: Path, flags: Sequence[str], depends: Sequence[Path]) -> Path:
    """The object of a source: from the cache where source, flags and headers are the same."""
    key = digest([COMPILER, str(source), *flags, source, *depends])
    target = CACHE / f"{source.stem}-{key}.o"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        run([COMPILER, *flags, "-c", source, "-o", partial])
        partial.rename(target)
    return target


def kernel_sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def compile_kernels(sources: Iterable[Path], flags: Sequence[str] = ("-O2",)) -> list[Path]:
    """Objects of CUDA sources, made by the host's compiler."""
    depends = headers(ROOT / "csrc", EMULATION)
    return [compile_object(path, [*flags, *FLAGS, *KERNEL_FLAGS], depends) for path in sources]


def compile_engine(names: Iterable[str], flags: Sequence[str] = ("-O2",)) -> list[Path]:
    """Objects of the emulator's own sources."""
    depends = headers(EMULATION)
    return [
        compile_object(EMULATION / name, [*flags, *FLAGS, f"-I{EMULATION}"], depends)
        for name in names
    ]


def link(objects: Sequence[Path], target: Path, flags: Sequence[str] = ()) -> None:
    """Links objects, unless the target is there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        run([COMPILER, *flags, "-pthread", *objects, "-o", partial])
        partial.rename(target)


def build_module() -> tuple[Path, list[Path]]:
    """Builds the module; its path, and the objects that hold the kernels."""
    kernels = compile_kernels(kernel_sources())
    engine = compile_engine(["engine.cpp", "fibers.cpp"])
    # The module's CPU half is not what is tested: it is only compiled quickly.
    python = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    flags = ["-O1", *FLAGS, "-DMDCP_WITH_CUDA", "-fvisibility=hidden", *python]
    native = ROOT / "csrc"
    depends = headers(native / "cpu", native / "numerics") + [native / "native.h"]
    sources = [native / "bindings.cpp", *sorted((native / "cpu").glob("*.cpp"))]
    cpu = [compile_object(path, flags, depends) for path in sources]
    objects = kernels + engine + cpu
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    target = CACHE / digest(path.name for path in objects) / f"_native{suffix}"
    link(objects, target, ["-shared"])
    return target, kernels


def symbols(binary: Path) -> dict[str, tuple[int, int]]:
    """Address and size of every defined symbol with a size."""
    table = {}
    for line in run(["nm", "-S", "--defined-only", binary]).splitlines():
        fields = line.split()
        if len(fields) == 4:
            table[fields[3]] = (int(fields[0], 16), int(fields[1], 16))
    return table


def shared_variables(kernels: Iterable[Path]) -> set[str]:
    """Symbols of the __shared__ variables: they live in a function that has a gap variable."""
    found: set[str] = set()
    for path in kernels:
        names = [name for name in symbols(path) if name.startswith("_ZZ")]
        gap = re.compile(r"(_ZZ.*E)\d+emulation_gap_\d+\w*$")
        functions = {match.group(1) for match in map(gap.match, names) if match}
        found |= {
            name
            for name in names
            if not gap.match(name) and any(name.startswith(function) for function in functions)
        }
    return found


class EmulatedCore:
    """The native core with emulated kernels. Everything but the methods here is the core's own.

    Not for use from several threads at once.
    """

    def __init__(self, path: Path, kernels: Sequence[Path]) -> None:
        loader = importlib.machinery.ExtensionFileLoader("emulated._native", str(path))
        spec = importlib.util.spec_from_file_location("emulated._native", path, loader=loader)
        assert spec is not None
        self._native: ModuleType = importlib.util.module_from_spec(spec)
        loader.exec_module(self._native)
        self._control = ctypes.CDLL(str(path))
        table = symbols(path)
        anchor = ctypes.cast(self._control.emulation_set_hook, ctypes.c_void_p).value
        assert anchor is not None
        base = anchor - table["emulation_set_hook"][0]
        self._names = {base + address: name for name, (address, _) in table.items()}
        for name in shared_variables(kernels):
            address, size = table[name]
            self._control.emulation_add_static_shared(
                ctypes.c_void_p(base + address), ctypes.c_size_t(size), name.encode()
            )
        self._hook: Any = None
        self._hook_error: BaseException | None = None
        self.buffers: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        item = getattr(self._native, name)
        if not name.endswith("_cuda"):
            return item

        def call(*arguments: Any) -> Any:
            try:
                return item(*arguments)
            except Exception:
                if self._hook_error is not None:
                    error, self._hook_error = self._hook_error, None
                    raise error from None
                raise
            finally:
                self.buffers.clear()

        return call

    def set_schedule(self, seed: int) -> None:
        """The order in which blocks and threads run: ascending for 0, else drawn from the seed."""
        self._control.emulation_set_schedule(ctypes.c_uint64(seed))

    def set_launch_hook(self, hook: LaunchHook | None) -> None:
        """Has `hook` called for every launch instead of running the kernel.

        Args:
            hook: gets the kernel's mangled name (g++ and nvcc agree on it but for anonymous
                namespaces), grid (x, y, z), block (x, y, z), bytes of dynamic shared memory and
                the bytes of each argument. `self.buffers` then holds the memory that the kernel may
                use. What it raises is raised by the call that launched. None: run the kernels.
        """
        self._hook_error = None
        if hook is None:
            self._hook = ctypes.cast(None, _HOOK_TYPE)
        else:

            def call(
                kernel: int,
                grid: Any,
                block: Any,
                shared_bytes: int,
                count: int,
                arguments: Any,
                sizes: Any,
            ) -> int:
                try:
                    values = [ctypes.string_at(arguments[i], sizes[i]) for i in range(count)]
                    name = self._names[kernel]
                    hook(name, tuple(grid[:3]), tuple(block[:3]), shared_bytes, values)
                except BaseException as error:
                    self._hook_error = error
                    return 1
                return 0

            self._hook = _HOOK_TYPE(call)
        self._control.emulation_set_hook(self._hook)


def emulated_core() -> EmulatedCore:
    """Builds the emulated core where it is not built, and loads it."""
    return EmulatedCore(*build_module())
