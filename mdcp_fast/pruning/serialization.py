"""Saves and loads pruned networks without pickle: safetensors, with the plan as metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mdcp_fast.modules.files import AnyPath, atomic_write, is_utf8
from mdcp_fast.modules.removal import remove, tensor_of
from mdcp_fast.pruning.plan import PruningPlan

PLAN_KEY = "mdcp_fast.plan"
FROZEN_KEY = "mdcp_fast.frozen"


def save(path: AnyPath, model: nn.Module, plan: PruningPlan) -> None:
    """Writes a pruned network and its plan to one safetensors file.

    Args:
        path: The file; it appears whole or not at all.
        model: What `prune` returned for `plan` (fine-tuned or not).
        plan: The plan.

    Raises:
        TypeError: `model` or `plan` is something else.
        ValueError: A parameter of `model` does not have the size that `plan` says.
        OSError: The file cannot be written.
    """
    from safetensors.torch import save_model

    if not isinstance(model, nn.Module):
        raise TypeError(f"save: model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(plan, PruningPlan):
        raise TypeError(f"save: plan: expected a PruningPlan, got {type(plan).__name__}")
    for name, dimensions in plan.positions.items():
        shape = list(tensor_of(model, name).shape)
        for dimension, kept in dimensions.items():
            if dimension >= len(shape) or shape[dimension] != len(kept):
                raise ValueError(
                    f"save: model: expected {len(kept)} entries along dimension {dimension} of "
                    f"{name} by this plan, got shape {shape}"
                )
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    metadata = {"format": "pt", PLAN_KEY: plan.to_json(), FROZEN_KEY: json.dumps(frozen)}
    with atomic_write(path) as temporary:
        save_model(model, str(temporary), metadata=metadata)


def load(path: AnyPath, make_model: Callable[[], nn.Module]) -> nn.Module:
    """Reads a pruned network: builds the dense one, replays the plan, loads the weights.

    No pickle is involved: nothing in the file is run.

    Args:
        path: A file that `save` wrote.
        make_model: Returns the dense network (its weights do not matter), e.g.
            `torchvision.models.resnet50`.

    Returns:
        The pruned network in evaluation mode, on the CPU or where `make_model` puts it, with the
        saved dtype.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: `make_model` does not make a network.
        ValueError: The file is truncated or was not written by `save`, or `make_model` makes
            another network.
    """
    metadata, tensors = _read(path)
    try:
        plan = PruningPlan.from_json(metadata[PLAN_KEY])
        frozen = set(json.loads(metadata.get(FROZEN_KEY, "[]")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"load: path: expected a pruning plan in {os.fsdecode(path)!r}, got: {error}"
        ) from error
    if not callable(make_model):
        raise TypeError(
            f"load: make_model: expected a function without arguments, got "
            f"{type(make_model).__name__}"
        )
    model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"load: make_model: expected a function that returns a torch.nn.Module, got "
            f"{type(model).__name__} from it"
        )
    try:
        small = remove(model, plan.positions)
    except ValueError as error:
        raise ValueError(
            f"load: make_model: expected the network that the plan was made for, got: {error}"
        ) from error
    _load_tensors(small, tensors, metadata)
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return small.eval()


def _read(path: AnyPath) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    name = os.fsdecode(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"load: path: expected a file written by save, got {name!r}")
    try:
        with (
            open(name, "rb") as opened,  # so that the system says what it does not allow
            safe_open(
                name if is_utf8(name) else f"/proc/self/fd/{opened.fileno()}", framework="pt"
            ) as file,
        ):
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"load: path: expected a whole safetensors file, got {name!r}: {error}"
        ) from error
    if PLAN_KEY not in metadata:
        raise ValueError(f"load: path: expected a file written by save, got {name!r} without plan")
    return metadata, tensors


def _load_tensors(model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Copies saved tensors into the model's and takes over their dtype.

    safetensors stores tensors that share memory once; the metadata maps the other names to that
    one.
    """
    own = model.state_dict(keep_vars=True)
    aliases = {
        name: stored for name, stored in metadata.items() if name in own and stored in tensors
    }
    missing = [name for name in own if name not in tensors and name not in aliases]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        raise ValueError(
            "load: make_model: expected the network that was saved, got one with "
            f"{missing[:5]} that the file lacks, and without {unexpected[:5]}"
        )
    with torch.no_grad():
        for name, target in own.items():
            value = tensors[aliases.get(name, name)]
            if value.shape != target.shape:
                raise ValueError(
                    f"load: make_model: expected the network that was saved, with {name} of shape "
                    f"{list(value.shape)}, got {list(target.shape)}"
                )
            if target.dtype != value.dtype:
                target.data = target.data.to(value.dtype)
            target.copy_(value)
