"""Saves and loads pruned networks without pickle: a safetensors file whose metadata holds the plan."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from mdcp_fast.plan import PruningPlan
from mdcp_fast.removal import remove

PLAN_KEY = "mdcp_fast.plan"
FROZEN_KEY = "mdcp_fast.frozen"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place when the block ends, and is gone if it fails.

    So a file appears whole or not at all, also when the program is killed or the disk is full.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(path: str | os.PathLike[str], model: nn.Module, plan: PruningPlan) -> None:
    """Writes a pruned network and its plan to one safetensors file.

    Args:
        path: The file; it appears whole or not at all.
        model: What `prune` returned for `plan` (fine-tuned or not).
        plan: The plan.

    Raises:
        ValueError: A parameter of `model` does not have the size that `plan` says.
        OSError: The file cannot be written.
    """
    from safetensors.torch import save_model

    for name, dimensions in plan.positions.items():
        path_of, _, leaf = name.rpartition(".")
        tensor = getattr(model.get_submodule(path_of), leaf)
        for dimension, kept in dimensions.items():
            if tensor.shape[dimension] != len(kept):
                raise ValueError(
                    f"save: model should have {len(kept)} entries along dimension {dimension} of {name} by this plan, "
                    f"got shape {tuple(tensor.shape)}"
                )
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    metadata = {"format": "pt", PLAN_KEY: plan.to_json(), FROZEN_KEY: json.dumps(frozen)}
    with whole_file(path) as temporary:
        save_model(model, str(temporary), metadata=metadata)


def load(path: str | os.PathLike[str], make_model: Callable[[], nn.Module]) -> nn.Module:
    """Reads a pruned network: builds the dense one, replays the plan, loads the weights. No pickle is involved.

    Args:
        path: A file that `save` wrote.
        make_model: Returns the dense network (its weights do not matter), e.g. `torchvision.models.resnet50`.

    Returns:
        The pruned network in evaluation mode, on the CPU or where `make_model` puts it, with the saved dtype.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated or was not written by `save`, or `make_model` makes another network.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"load: path should be a file written by mdcp_fast.save, got {os.fspath(path)!r}"
        )
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(
            f"load: {os.fspath(path)!r} should be a whole safetensors file, got: {error}"
        ) from error
    if PLAN_KEY not in metadata:
        raise ValueError(
            f"load: {os.fspath(path)!r} should hold a pruning plan (mdcp_fast.save writes it), got none"
        )
    plan = PruningPlan.from_json(metadata[PLAN_KEY])
    model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"load: make_model should return a torch.nn.Module, got {type(model).__name__}"
        )
    try:
        small = remove(model, plan.positions)
    except ValueError as error:
        raise ValueError(
            f"load: make_model should make the network that the plan was made for: {error}"
        ) from error
    _load_tensors(small, tensors, metadata)
    frozen = set(json.loads(metadata.get(FROZEN_KEY, "[]")))
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return small.eval()


def _load_tensors(
    model: nn.Module, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    """Copies saved tensors into the model's, names that share storage included, and takes over their dtype."""
    own = model.state_dict(keep_vars=True)
    # save_model stores tensors that share memory once; the metadata maps the other names to the stored one.
    aliases = {
        name: stored for name, stored in metadata.items() if name in own and stored in tensors
    }
    missing = [name for name in own if name not in tensors and name not in aliases]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        raise ValueError(
            "load: make_model should make the network that was saved; "
            f"missing in the file: {missing[:5]}, not in the network: {unexpected[:5]}"
        )
    with torch.no_grad():
        for name, target in own.items():
            value = tensors[aliases.get(name, name)]
            if value.shape != target.shape:
                raise ValueError(
                    f"load: make_model should make the network that was saved; {name} should have shape "
                    f"{tuple(value.shape)}, got {tuple(target.shape)}"
                )
            if target.dtype != value.dtype:
                target.data = target.data.to(value.dtype)
            target.copy_(value)
