"""Has the launchers of csrc/cuda run nvcc's PTX of their kernels in place of the kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from emulation.build import EmulatedCore, kernel_sources
from emulation.ptx import Module
from emulation.ptx_compile import nvcc_ptx, same_name


@functools.cache
def _module(text: str) -> Module:
    return Module(text)


class PtxKernels:
    """A launch hook over the PTX of all the project's kernels.

    Args:
        architecture: what the PTX is for: 75, 90, ...
        texts: PTX in the place of some sources', by the source's stem.
    """

    def __init__(self, architecture: int, texts: dict[str, str] | None = None) -> None:
        self.modules: dict[str, Module] = {}  # by the source's stem
        self.found: dict[str, tuple[Module, str]] = {}  # by the kernel's name
        self.launched: set[str] = set()
        for source in kernel_sources():
            given = (texts or {}).get(source.stem)
            module = Module(given) if given else _module(nvcc_ptx(source, architecture))
            self.modules[source.stem] = module
            for name in module.kernels:
                self.found[same_name(name)] = (module, name)
        self.core: EmulatedCore | None = None

    def drive(self, core: EmulatedCore) -> EmulatedCore:
        """The core, its launches from now on run here."""
        self.core = core
        core.set_launch_hook(self)
        return core

    def __call__(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared_bytes: int,
        arguments: Sequence[bytes],
    ) -> None:
        assert self.core is not None
        module, own_name = self.found[same_name(name)]
        self.launched.add(own_name)
        memory = list(self.core.buffers.items())
        module.launch(own_name, grid, block, shared_bytes, arguments, memory)

    def not_launched(self, stem: str) -> set[str]:
        """The kernels of a source that nothing has launched yet."""
        return set(self.modules[stem].kernels) - self.launched
