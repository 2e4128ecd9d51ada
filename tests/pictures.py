"""What hangs on a network, to tell whether something has changed it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mdcp_fast.modules.state import reachable


def picture(net: nn.Module) -> dict[str, Any]:
    """Everything that hangs on a network, by value where that can be told."""
    found = reachable(net)
    return {
        "containers": [(id(one), list(one)) for one in found.containers],
        "tensors": [(id(t), t.clone() if not t.is_meta else None) for t in found.tensors],
        "classes": [{k: id(v) for k, v in vars(one).items()} for one in found.classes],
    }


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    pairs = zip(left["tensors"], right["tensors"], strict=True)
    return (
        [i for i, _ in left["containers"]] == [i for i, _ in right["containers"]]
        and [len(c) for _, c in left["containers"]] == [len(c) for _, c in right["containers"]]
        and all(i == j and torch.equal(a, b) for (i, a), (j, b) in pairs)
        and left["classes"] == right["classes"]
    )
