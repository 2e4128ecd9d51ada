"""Saves and loads pruned networks without pickle: safetensors, with the plan as metadata."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.defaults import cpu_by_default
from mdcp_fast.modules.files import AnyPath, atomic_write, is_utf8
from mdcp_fast.modules.removal import remove, tensor_of
from mdcp_fast.modules.strict_json import LARGEST, parse
from mdcp_fast.pruning.plan import PruningPlan

PLAN_KEY = "mdcp_fast.plan"
FROZEN_KEY = "mdcp_fast.frozen"
EXTRA_KEY = "mdcp_fast.extra_state"
DIGEST_KEY = "mdcp_fast.digest"
SAVED = (PLAN_KEY, FROZEN_KEY, EXTRA_KEY)  # of the metadata, what the digest is of besides tensors
EXTRA = "_extra_state"  # torch's name for what get_extra_state returns
KINDS = ("is_floating_point", "is_complex")  # of dtypes, between which nothing is converted


def save(path: AnyPath, model: nn.Module, plan: PruningPlan) -> None:
    """Writes a pruned network and its plan to one safetensors file.

    Args:
        path: The file; it appears whole or not at all.
        model: What `prune` returned for `plan` (fine-tuned or not).
        plan: The plan.

    Raises:
        TypeError: `model` or `plan` is something else.
        ValueError: A parameter of `model` does not have the size that `plan` says; or a module's
            `get_extra_state` returns what is neither a tensor nor plain JSON values, or it has no
            `set_extra_state` to take it back.
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
    state = model.state_dict()
    extra = {name: state.pop(name) for name in _extra_states(model, state)}
    state |= {name: value for name, value in extra.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in extra.items() if name not in state}
    metadata = {
        PLAN_KEY: plan.to_json(),
        FROZEN_KEY: json.dumps(frozen),
        EXTRA_KEY: json.dumps(plain),
    }
    metadata |= {"format": "pt", DIGEST_KEY: _digest(state, metadata)}
    with atomic_write(path) as temporary:
        save_model(_Given(state), str(temporary), metadata=metadata)


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
        with cpu_by_default():
            plan = PruningPlan.from_json(metadata[PLAN_KEY])
        frozen = _names_in(metadata)
        extra = parse(metadata.get(EXTRA_KEY, "{}"))
        if not isinstance(extra, dict):
            raise ValueError(f"{EXTRA_KEY}: expected an object, got {type(extra).__name__}")
    except ValueError as error:
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
        plan.check_shapes(model)
        with cpu_by_default():
            small = remove(model, plan.positions)
    except ValueError as error:
        raise ValueError(
            f"load: make_model: expected the network that the plan was made for, got: {error}"
        ) from error
    _load_tensors(small, tensors, metadata, extra)
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


def _names_in(metadata: dict[str, str]) -> set[str]:
    """The parameters that were frozen."""
    frozen = parse(metadata.get(FROZEN_KEY, "[]"))
    if not isinstance(frozen, list) or not all(isinstance(name, str) for name in frozen):
        raise ValueError(f"{FROZEN_KEY}: expected a list of names, got {str(frozen)[:40]}")
    return set(frozen)


class _Given(nn.Module):
    """A module with a given state, for safetensors, which takes modules."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self._state = state

    def state_dict(self, *_: Any, **__: Any) -> Any:
        return self._state


def _extra_states(model: nn.Module, state: dict[str, Any]) -> dict[str, nn.Module]:
    """The modules that have a state besides their tensors, by its name in the network's state.

    Raises:
        ValueError: It cannot be saved, or not given back.
    """
    found = {}
    for path, module in model.named_modules():
        name = f"{path}.{EXTRA}" if path else EXTRA
        if name not in state:
            continue
        found[name] = module
        if not isinstance(state[name], Tensor) and not _is_plain(state[name]):
            raise ValueError(
                f"save: model: expected extra state that is a tensor, or plain JSON values, which "
                f"no code is needed to read, got {type(state[name]).__name__} as {name}"
            )
        if type(module).set_extra_state is nn.Module.set_extra_state:
            raise ValueError(
                f"save: model: expected a set_extra_state that takes back what get_extra_state "
                f"gave, got none for {name} in {type(module).__name__}"
            )
    return found


def _is_plain(value: Any) -> bool:
    """Whether JSON gives back a value as it was."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is int:
        return -LARGEST <= value < LARGEST
    return value is None or type(value) in (str, bool)


def _digest(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A hash of all that was saved: of what every tensor is called and holds, and of the plan."""
    found = hashlib.blake2b(digest_size=16)
    for name in SAVED:
        found.update(f"{name} {len(metadata.get(name, ''))} {metadata.get(name, '')}".encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous().reshape(-1)
        found.update(f"{name} {state[name].dtype} {list(state[name].shape)} ".encode())
        found.update(tensor.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _load_tensors(
    model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], extra: dict[str, Any]
) -> None:
    """Copies saved tensors into the model's and takes over their dtype.

    safetensors stores tensors that share memory once; the metadata maps the other names to that
    one.
    """
    own = model.state_dict(keep_vars=True)
    aliases = {
        name: stored for name, stored in metadata.items() if name in own and stored in tensors
    }
    missing = [name for name in own if name not in {*tensors, *aliases, *extra}]
    unexpected = [name for name in (*tensors, *extra) if name not in own]
    if missing or unexpected:
        raise ValueError(
            "load: make_model: expected the network that was saved, got one with "
            f"{missing[:5]} that the file lacks, and without {unexpected[:5]}"
        )
    values = {name: tensors[aliases.get(name, name)] for name in own if name not in extra}
    if metadata.get(DIGEST_KEY) not in (None, _digest(values, metadata)):
        raise ValueError(
            "load: path: expected a file as save wrote it, got one whose content has changed since"
        )
    owners = {
        f"{path}.{EXTRA}" if path else EXTRA: module for path, module in model.named_modules()
    }
    for name, value in values.items():
        if name not in owners:
            _check_fits(name, own[name], value)
    with torch.no_grad():
        for name, value in values.items():
            if name in owners:
                continue
            target = own[name]
            if target.dtype != value.dtype:
                target.data = target.data.to(value.dtype)
            target.copy_(value)
    for name, value in (*values.items(), *extra.items()):
        if name in owners:
            owners[name].set_extra_state(value)


def _check_fits(name: str, target: Tensor, value: Tensor) -> None:
    if value.shape != target.shape:
        raise ValueError(
            f"load: make_model: expected the network that was saved, with {name} of shape "
            f"{list(value.shape)}, got {list(target.shape)}"
        )
    exact = not (value.is_floating_point() or value.is_complex())
    alike = all(getattr(value.dtype, kind) == getattr(target.dtype, kind) for kind in KINDS)
    if not alike or (exact and value.dtype != target.dtype):
        raise ValueError(
            f"load: make_model: expected the network that was saved, with {name} of "
            f"{value.dtype}, got {target.dtype}"
        )
