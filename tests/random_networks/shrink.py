"""Makes a failing network as small as it can be."""

from __future__ import annotations

from collections.abc import Callable

from random_networks.check import Verdict
from random_networks.grammar import Spec


def shrunk(spec: Spec, examine: Callable[[Spec], Verdict]) -> Spec:
    """The least network that fails as `spec` does: parts are left out while it still does.

    Args:
        spec: A network that fails.
        examine: Says how.
    """
    kind = examine(spec).kind
    smaller = True
    while smaller:
        smaller = False
        for simpler in spec.simpler():
            if examine(simpler).kind == kind:
                spec, smaller = simpler, True
                break
    return spec
