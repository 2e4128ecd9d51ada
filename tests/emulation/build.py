"""Builds the native core with its CUDA kernels emulated, and steers the emulator.

Every object is cached under build/emulation by the hash of what went into it.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11

ROOT = Path(__file__).parents[2]
EMULATION = Path(__file__).parent
NATIVE = ROOT / "csrc"
CACHE = ROOT / "build" / "emulation"
COMPILER = "g++"

# As in setup.py: nothing may contract a*b+c. Fortified longjmp refuses to change stacks.
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-pthread", "-g1"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
KERNEL_FLAGS = ["-x", "c++", "-DMDCP_EMULATION", "-DMDCP_WITH_CUDA", f"-I{EMULATION}"]
KERNEL_FLAGS += ["-include", str(EMULATION / "cuda_emulation.h")]

LaunchHook = Callable[[str, tuple[int, ...], tuple[int, ...], int, list[bytes]], None]
_GAP = re.compile(r"(_ZZ.*E)\d+emulation_gap_\d+\w*$")
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
    return made_once(target, lambda path: run([COMPILER, *flags, "-c", source, "-o", path]))


def made_once(target: Path, make: Callable[[Path], object]) -> Path:
    """A file of the cache, made where it is missing: whole or not at all, once for all processes.

    Args:
        target: The file.
        make: Writes it to the path that it is given.

    Returns:
        The target.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f"{target.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                partial = target.with_name(f"{target.name}.partial")
                make(partial)
                partial.rename(target)
    return target


def kernel_sources() -> list[Path]:
    return sorted((NATIVE / "cuda").glob("*.cu"))


@dataclass(frozen=True)
class Mode:
    """One way to run kernels: the emulator's sources, and flags for compiling and for linking."""

    sources: tuple[str, ...]
    kernel_flags: tuple[str, ...]
    engine_flags: tuple[str, ...] = ("-O2",)
    link_flags: tuple[str, ...] = ()


_FIBERS = ("engine.cpp", "fibers.cpp")
_THREADS = ("engine.cpp", "threads.cpp")
_THREADED = "-DMDCP_EMULATION_THREADS"
_RACE = "-fsanitize=thread"
_ADDRESS = "-fsanitize=address,undefined"
MODES = {
    # Seeded schedules, fast.
    "fibers": Mode(_FIBERS, ("-O2",)),
    # The same with every memory access checked: the sanitizer's calls go to checker.cpp.
    "checked": Mode((*_FIBERS, "checker.cpp"), ("-O2", _RACE)),
    # ThreadSanitizer on fibers, which it sees as threads, and on threads.
    "tsan": Mode(_FIBERS, ("-O1", _RACE), ("-O2", "-DMDCP_EMULATION_TSAN"), (_RACE,)),
    "tsan-threads": Mode(_THREADS, ("-O1", _RACE, _THREADED), ("-O2", _THREADED), (_RACE,)),
    # AddressSanitizer and UndefinedBehaviorSanitizer.
    "asan-threads": Mode(
        _THREADS,
        ("-O0", _ADDRESS, "-fno-sanitize-recover=all", _THREADED),
        ("-O2", _THREADED),
        (_ADDRESS,),
    ),
}


def sanitizer_missing(mode: str) -> str:
    """Why programs of this mode cannot be linked here: the library's name, or "" if they can."""
    libraries = {_RACE: ["libtsan.so"], _ADDRESS: ["libasan.so", "libubsan.so"]}
    for flag in MODES[mode].link_flags:
        for library in libraries[flag]:
            if not Path(run([COMPILER, f"-print-file-name={library}"]).strip()).is_absolute():
                return f"{COMPILER} has no {library}"
    return ""


def compile_kernels(sources: Iterable[Path], mode: str, native: Path = NATIVE) -> list[Path]:
    """Objects of CUDA sources, made by the host's compiler with the headers of a csrc folder."""
    depends = headers(native, EMULATION)
    flags = [*MODES[mode].kernel_flags, *FLAGS, *KERNEL_FLAGS, f"-I{native}"]
    return [compile_object(path, flags, depends) for path in sources]


def compile_engine(mode: str) -> list[Path]:
    """Objects of the emulator's own sources."""
    depends = headers(EMULATION)
    flags = [*MODES[mode].engine_flags, *FLAGS, f"-I{EMULATION}"]
    return [compile_object(EMULATION / name, flags, depends) for name in MODES[mode].sources]


def compile_cpu() -> list[Path]:
    """Objects of the CPU's ops, which are not what is tested here: only compiled quickly."""
    depends = headers(NATIVE / "cpu", NATIVE / "numerics", NATIVE / "ops")
    flags = ["-O0", "-DMDCP_ONE_LEVEL", *FLAGS, f"-I{NATIVE}", "-fvisibility=hidden"]
    return [compile_object(path, flags, depends) for path in sorted((NATIVE / "cpu").glob("*.cpp"))]


def link(objects: Sequence[Path], kernels: Sequence[Path], name: str, flags: Sequence[str]) -> Path:
    """Links objects in a folder of their own, with the list of shared variables beside them.

    Args:
        objects: everything to link. Of an inline function that several hold, the first one's copy
            stays: the engine's, which is not instrumented, goes before the kernels', and those
            before the rest.
        kernels: those of the objects that hold kernels.
        name: of the program or library.
        flags: for the linker.

    Returns:
        The path of what was linked; `shared_list` gives that of the list.
    """
    target = CACHE / digest([*(path.name for path in objects), *flags]) / name

    def make(partial: Path) -> None:
        run([COMPILER, *flags, "-pthread", *objects, "-o", partial])
        table = symbols(partial)
        lines = [
            f"{table[symbol][0]} {table[symbol][1]} {name}".rstrip()
            for symbol, name in shared_variables(kernels).items()
            if symbol in table
        ]
        shared_list(target).write_text("".join(f"{line}\n" for line in lines))

    return made_once(target, make)


def shared_list(target: Path) -> Path:
    """The list of a linked target's __shared__ variables: lines of "offset size [name]"."""
    return target.with_name(f"{target.name}.shared")


def build_program(
    driver: Path,
    mode: str,
    kernels: Sequence[Path] | None = None,
    *,
    native: Path = NATIVE,
    others: Sequence[Path] = (),
    cpu: bool = True,
) -> Path:
    """Builds a program around a driver (driver.h).

    Args:
        driver: a CUDA source with a main function.
        mode: one of MODES.
        kernels: CUDA sources to link; None for the project's.
        native: the csrc folder whose headers the kernels include.
        others: further CUDA sources to link, which include the project's headers.
        cpu: link the CPU's ops too.

    Returns:
        Its path.
    """
    sources = kernel_sources() if kernels is None else kernels
    compiled = compile_kernels([driver, *others], mode) + compile_kernels(sources, mode, native)
    objects = compile_engine(mode) + compiled + (compile_cpu() if cpu else [])
    return link(objects, compiled, driver.stem, MODES[mode].link_flags)


def run_program(program: Path, seed: int, timeout: float = 120) -> str:
    """Runs a program of build_program.

    Args:
        program: its path.
        seed: of the schedule.
        timeout: in seconds; a program that hangs is one that fails.

    Returns:
        What was reported: "" when all went well.
    """
    command = [str(program), str(shared_list(program)), str(seed)]
    # Stop at the first report, and do not wait for threads that may still find something.
    options = {"TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0", "ASAN_OPTIONS": ""}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **options},
        )
    except subprocess.TimeoutExpired:
        return f"no end after {timeout} s"
    if done.returncode == 0:
        return ""
    return done.stderr.strip() or f"exit status {done.returncode}"


def build_module(mode: str) -> Path:
    """Builds the native module with emulated kernels; its path."""
    kernels = compile_kernels(kernel_sources(), mode)
    flags = ["-O0", *FLAGS, f"-I{NATIVE}", "-DMDCP_WITH_CUDA", "-fvisibility=hidden"]
    flags += [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    bindings = compile_object(NATIVE / "bindings.cpp", flags, headers(NATIVE))
    objects = [*compile_engine(mode), *kernels, *compile_cpu(), bindings]
    return link(objects, kernels, f"_native{sysconfig.get_config_var('EXT_SUFFIX')}", ["-shared"])


def symbols(binary: Path) -> dict[str, tuple[int, int]]:
    """Address and size of every defined symbol with a size."""
    table = {}
    for line in run(["nm", "-S", "--defined-only", binary]).splitlines():
        fields = line.split()
        if len(fields) == 4:
            table[fields[3]] = (int(fields[0], 16), int(fields[1], 16))
    return table


def shared_variables(kernels: Iterable[Path]) -> dict[str, str]:
    """Symbol -> name of each __shared__ variable, which lives in a function with gap variables.

    The gaps themselves have the name "".
    """
    found: dict[str, str] = {}
    for path in kernels:
        table = [symbol for symbol in symbols(path) if symbol.startswith("_ZZ")]
        gaps = {symbol: match for symbol in table if (match := _GAP.match(symbol))}
        found |= dict.fromkeys(gaps, "")
        for symbol in set(table) - set(gaps):
            for function in {match.group(1) for match in gaps.values()}:
                if symbol.startswith(function):
                    # <length><name>, and a number where the function has two of the name
                    found[symbol] = re.sub(r"^\d+", "", symbol.removeprefix(function))
    return found


class EmulatedCore:
    """The native core with emulated kernels. Everything but the methods here is the core's own.

    Not for use from several threads at once.
    """

    def __init__(self, path: Path) -> None:
        loader = importlib.machinery.ExtensionFileLoader("emulated._native", str(path))
        spec = importlib.util.spec_from_file_location("emulated._native", path, loader=loader)
        assert spec is not None
        self._native: ModuleType = importlib.util.module_from_spec(spec)
        loader.exec_module(self._native)
        self._control = ctypes.CDLL(str(path))
        self._control.emulation_base.restype = ctypes.c_size_t
        base = self._control.emulation_base()
        self._names = {base + address: name for name, (address, _) in symbols(path).items()}
        for line in shared_list(path).read_text().splitlines():
            offset, size, *name = line.split()
            self._control.emulation_add_static_shared(
                ctypes.c_size_t(int(offset)), ctypes.c_size_t(int(size)), "".join(name).encode()
            )
        self._hook: Any = None
        self._hook_error: BaseException | None = None
        self.buffers: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        item = getattr(self._native, name)
        if not name.endswith("_cuda"):
            return item

        def call(*arguments: Any, **named: Any) -> Any:
            self._control.emulation_clear_buffers()
            for address, size in self.buffers.items():
                self._control.emulation_add_buffer(ctypes.c_size_t(address), ctypes.c_size_t(size))
            try:
                return item(*arguments, **named)
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


def emulated_core(mode: str = "fibers") -> EmulatedCore:
    """Builds the emulated core where it is not built, and loads it."""
    return EmulatedCore(build_module(mode))
