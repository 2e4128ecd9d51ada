"""PruningPlan: which channels stay, and why."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.removal import kept_tensor, tensor_of
from mdcp_fast.modules.strict_json import parse
from mdcp_fast.modules.widths import dense_widths
from mdcp_fast.pruning.plan_check import LARGEST, check_plan, check_rising, member
from mdcp_fast.tracing.axes import Axis, FixedAxis
from mdcp_fast.tracing.graph import ChannelGraph, left_whole, not_counted

FORMAT = 4
ROTATED = 3  # the first format that knows of rotated axes
SHAPES = 4  # the first one that knows the dense network's shapes
WORDS = {
    "macs": "MACs",
    "params": "parameters",
    "latency": "ns of predicted latency",
}  # for costs, in text
STALE = "dense_widths"  # the setting that names numbers of modules that keep a width that shrinks
UNCOUNTED = "uncounted"  # the setting that names ops that are not in the MACs
OLD_COSTS = ("macs", "params")  # the fields of format 1, each with a twin for the dense network


@dataclass(frozen=True)
class AxisPlan:
    """What happens to one axis.

    Attributes:
        name: The axis's name in the graph.
        channels: Its dense width.
        kept: Indices of the channels that stay, increasing.
        clusters: Cluster of every channel, or None where the channels were not clustered.
        reason: Why the axis was left whole, or why a wish (`round_to`) could not be met; None
            otherwise.
        rotated: Whether `kept` are channels of another basis, in order (see `rotate_streams`): the
            first ones.
    """

    name: str
    channels: int
    kept: tuple[int, ...]
    clusters: tuple[int, ...] | None = None
    reason: str | None = None
    rotated: bool = False

    @property
    def width(self) -> int:
        return len(self.kept)


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """What to keep of a network. Made by `search` or `PruningPlan.build`, carried out by `prune`.

    Attributes:
        axes: One entry for each axis of the graph.
        fixed: What may not be pruned, with reasons.
        positions: Kept positions, int64, by parameter (or buffer) and dimension; only those that
            lose something. Where an axis is rotated, they count its new channels.
        costs: What the pruned network costs, by name: "macs", "params", and what else the graph
            counts.
        dense_costs: The same of the dense network.
        budget: The fractions asked for, e.g. {"macs": 0.45}.
        settings: How the plan was found (descriptor, seed, ...); plain JSON values.
        history: Best fitness after each generation of the search.
        shapes: The dense network's shape of each tensor in `positions`; empty in plans of versions
            that did not record them.
    """

    axes: tuple[AxisPlan, ...]
    fixed: tuple[FixedAxis, ...]
    positions: dict[str, dict[int, Tensor]]
    costs: dict[str, int]
    dense_costs: dict[str, int]
    budget: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    history: tuple[float, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_plan(self)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the pruned network for the graph's example inputs."""
        return self.costs["macs"]

    @property
    def params(self) -> int:
        """Number of parameters of the pruned network."""
        return self.costs["params"]

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense network."""
        return self.dense_costs["macs"]

    @property
    def dense_params(self) -> int:
        """Number of parameters of the dense network."""
        return self.dense_costs["params"]

    @classmethod
    def build(
        cls,
        graph: ChannelGraph,
        kept: Sequence[Tensor | Sequence[int]],
        *,
        clusters: Sequence[Tensor | Sequence[int] | None] | None = None,
        budget: Mapping[str, float] | None = None,
        settings: Mapping[str, Any] | None = None,
        history: Sequence[float] = (),
        notes: Mapping[str, str] | None = None,
        rotated: Collection[int] = (),
    ) -> PruningPlan:
        """Makes a plan from the channels to keep of each axis.

        Args:
            graph: The traced network.
            kept: For each of `graph.axes`, the channels that stay (at least one, no repeats, in any
                order).
            clusters: For each axis, the cluster of every channel, or None.
            budget, settings, history: See the attributes.
            notes: Reasons by axis name.
            rotated: Axes, by index, that are pruned in another basis: of these the first channels
                stay.

        Raises:
            ValueError: `kept` does not fit the axes.
        """
        if len(kept) != len(graph.axes):
            raise ValueError(
                f"PruningPlan: kept: expected {len(graph.axes)} entries, one for each axis, got "
                f"{len(kept)}"
            )
        notes = notes or {}
        plans = []
        for index, (axis, channels) in enumerate(zip(graph.axes, kept, strict=True)):
            chosen = _checked(axis, channels)
            labels = clusters[index] if clusters is not None else None
            named = None if labels is None else tuple(int(c) for c in labels)
            reason, turned = notes.get(axis.name), index in rotated and len(chosen) < axis.channels
            plans.append(AxisPlan(axis.name, axis.channels, chosen, named, reason, turned))
        widths = torch.tensor([plan.width for plan in plans], dtype=torch.int64)
        positions = graph.positions([plan.kept for plan in plans])
        settings, stale = dict(settings or {}), dense_widths(graph.model, positions)
        if stale:
            settings[STALE] = stale
        if graph.uncounted:
            settings[UNCOUNTED] = list(graph.uncounted)
        return cls(
            axes=tuple(plans),
            fixed=graph.fixed,
            positions=positions,
            costs=graph.costs_at(widths),
            dense_costs=dict(graph.costs),
            budget=dict(budget or {}),
            settings=settings,
            history=tuple(float(h) for h in history if math.isfinite(h)),  # infinite: no plan yet
            shapes={name: tuple(tensor_of(graph.model, name).shape) for name in positions},
        )

    def check_shapes(self, model: nn.Module) -> None:
        """Finds what is to be pruned of `model` in the shapes that the plan was made for.

        Raises:
            ValueError: It does not have one, or one has another shape.
        """
        for name, shape in self.shapes.items():
            found = list(tensor_of(model, name).shape)
            if found != list(shape):
                raise ValueError(f"expected one with {name} of shape {list(shape)}, got {found}")

    def kept(self, parameter: str, dimension: int) -> Tensor | None:
        """Old positions that stay along a parameter's dimension, in their new order; None for all.

        Args:
            parameter: Fully qualified name of a parameter or buffer.
            dimension: Its dimension.
        """
        found = self.positions.get(parameter, {}).get(dimension)
        return None if found is None else found.clone()

    def apply_to_optimizer(
        self, optimizer: torch.optim.Optimizer, dense: nn.Module, small: nn.Module
    ) -> torch.optim.Optimizer:
        """An optimizer for the pruned network that goes on where the dense network's one was.

        State tensors of a parameter's shape (momentum, Adam's averages), or with size 1 in its
        place (Adafactor's), lose the positions the parameter lost.

        Args:
            optimizer: The dense network's optimizer; not changed.
            dense: The network that `optimizer` trains.
            small: What `prune` returned for this plan.

        Returns:
            An optimizer of the same class with the same parameter groups and options.

        Raises:
            ValueError: This plan rotates an axis, `optimizer` trains a parameter that is not in
                `dense` or keeps a state of another shape, or `small` does not follow this plan.
        """
        turned = [axis.name for axis in self.axes if axis.rotated]
        if turned:
            raise ValueError(
                "apply_to_optimizer: plan: expected one that rotates no axis, since averages of "
                f"squared gradients have one basis, got {', '.join(turned[:5])} rotated "
                "(search(..., rotate=False) rotates none)"
            )
        names = {id(parameter): name for name, parameter in dense.named_parameters()}
        twins = dict(small.named_parameters())
        groups: list[dict[str, Any]] = []
        states: dict[Tensor, dict[str, Any]] = {}
        for group in optimizer.param_groups:
            members: list[Any] = []
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name is None or name not in twins:
                    raise ValueError(
                        "apply_to_optimizer: optimizer: expected one that trains parameters of "
                        "`dense` and of `small`, got a foreign parameter"
                    )
                twin = self._twin(name, parameter, twins[name])
                members.append((name, twin) if "param_names" in group else twin)
                states[twin] = {
                    key: self._followed(name, key, parameter, value)
                    for key, value in optimizer.state.get(parameter, {}).items()
                }
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            groups.append({**options, "params": members})
        accepted = inspect.signature(type(optimizer).__init__).parameters
        defaults = {key: value for key, value in optimizer.defaults.items() if key in accepted}
        follower = type(optimizer)(groups, **defaults)
        for twin, state in states.items():
            if state:
                follower.state[twin] = state
        return follower

    def _twin(self, name: str, parameter: Tensor, twin: Tensor) -> Tensor:
        dimensions = self.positions.get(name, {})
        expected = [
            len(dimensions[d]) if d in dimensions else size
            for d, size in enumerate(parameter.shape)
        ]
        if list(twin.shape) != expected:
            raise ValueError(
                f"apply_to_optimizer: small: expected {name} of shape {expected} by this plan, got "
                f"{list(twin.shape)}"
            )
        return twin

    def _followed(self, name: str, key: str, parameter: Tensor, value: Any) -> Any:
        """One entry of a parameter's optimizer state, without the positions that went."""
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        dimensions = self.positions.get(name, {})
        if value.numel() == 1 or not dimensions:
            return value.clone()
        fits = value.dim() == parameter.dim() and all(
            size in (1, full) for size, full in zip(value.shape, parameter.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"apply_to_optimizer: optimizer: expected {key} of {name} to have its shape "
                f"{list(parameter.shape)}, got {list(value.shape)}"
            )
        held = {d: kept for d, kept in dimensions.items() if value.shape[d] == parameter.shape[d]}
        return kept_tensor(value, held)

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back."""
        return json.dumps(
            {
                "format": FORMAT,
                "costs": self.costs,
                "dense_costs": self.dense_costs,
                "budget": self.budget,
                "settings": self.settings,
                "history": list(self.history),
                "axes": [
                    {
                        "name": axis.name,
                        "channels": axis.channels,
                        "kept": list(axis.kept),
                        "clusters": None if axis.clusters is None else list(axis.clusters),
                        "reason": axis.reason,
                        "rotated": axis.rotated,
                    }
                    for axis in self.axes
                ],
                "fixed": [
                    {"name": f.name, "channels": f.channels, "reason": f.reason} for f in self.fixed
                ],
                "shapes": {name: list(shape) for name, shape in self.shapes.items()},
                "positions": {
                    name: {str(d): kept.tolist() for d, kept in dims.items()}
                    for name, dims in self.positions.items()
                },
            }
        )

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: The text is not such a plan.
        """
        try:
            return _plan_in(parse(text))
        except ValueError as error:
            raise ValueError(
                f"PruningPlan.from_json: text: expected a plan written by to_json, got: {error}"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PruningPlan) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __str__(self) -> str:
        costs = [
            f"{cost:,} of {self.dense_costs[name]:,} {WORDS.get(name, name)} "
            f"({cost / max(self.dense_costs[name], 1):.1%})"
            for name, cost in self.costs.items()
        ]
        lines = [f"PruningPlan: {', '.join(costs)}"]
        if self.settings.get("multiple", 1) > 1:
            lines.append(
                f"{self.settings['multiples']} of {len(self.axes)} widths are multiples of "
                f"{self.settings['multiple']}"
            )
        wide = max((len(axis.name) for axis in self.axes), default=0)
        for axis in self.axes:
            notes = ["rotated" if axis.rotated else "", axis.reason or ""]
            note = f"  ({'; '.join(filter(None, notes))})" if any(notes) else ""
            lines.append(f"  {axis.name:<{wide}}  {axis.channels:>5} -> {axis.width:<5}{note}")
        lines += not_counted(self.settings.get(UNCOUNTED, ()))
        if self.settings.get(STALE):
            lines.append(f"Attributes that keep a dense width: {', '.join(self.settings[STALE])}")
        return "\n".join(lines + left_whole(self.fixed))


def _plan_in(data: Any) -> PruningPlan:
    """The plan that JSON holds, in any format so far; `PruningPlan` checks the values.

    Raises:
        ValueError: A key is missing or holds another kind of value; the message names it.
    """
    number = member("", data, "format", int)
    if number not in range(1, FORMAT + 1):
        raise ValueError(f"PruningPlan: format: expected 1 to {FORMAT}, got {number}")
    costs, dense = _costs_in(data, number)
    positions = {
        name: {
            _dimension(f"positions.{name}", d): _positions(f"positions.{name}.{d}", kept)
            for d, kept in member("positions", data["positions"], name, dict).items()
        }
        for name in member("", data, "positions", dict)
    }
    recorded = number >= SHAPES or "shapes" in data
    shapes = member("", data, "shapes", dict) if recorded else {}
    return PruningPlan(
        axes=tuple(
            _axis(f"axes[{index}]", axis, number)
            for index, axis in enumerate(member("", data, "axes", list))
        ),
        fixed=tuple(
            FixedAxis(
                member(f"fixed[{index}]", one, "name", str),
                member(f"fixed[{index}]", one, "channels", int),
                member(f"fixed[{index}]", one, "reason", str),
            )
            for index, one in enumerate(member("", data, "fixed", list))
        ),
        positions=positions,
        costs=costs,
        dense_costs=dense,
        budget=member("", data, "budget", dict),
        settings=member("", data, "settings", dict),
        history=tuple(member("", data, "history", list)),
        shapes={name: tuple(member("shapes", shapes, name, list)) for name in shapes},
    )


def _axis(key: str, axis: Any, number: int) -> AxisPlan:
    clusters = member(key, axis, "clusters", (list, NoneType))
    return AxisPlan(
        name=member(key, axis, "name", str),
        channels=member(key, axis, "channels", int),
        kept=tuple(member(key, axis, "kept", list)),
        clusters=None if clusters is None else tuple(clusters),
        reason=member(key, axis, "reason", (str, NoneType)),
        rotated=member(key, axis, "rotated", bool) if number >= ROTATED else False,
    )


def _dimension(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and text == str(int(text))):
        raise ValueError(f"PruningPlan: {key}: expected the number of a dimension, got {text!r}")
    return int(text)


def _positions(key: str, kept: Any) -> Tensor:
    if not isinstance(kept, list):
        raise ValueError(f"PruningPlan: {key}: expected a list, got {type(kept).__name__}")
    check_rising(key, kept, LARGEST)
    return torch.tensor(kept, dtype=torch.int64)


def _costs_in(data: Any, number: int) -> tuple[dict[str, int], dict[str, int]]:
    """The costs of the pruned and of the dense network, of a plan in any format so far."""
    if number == 1:
        pruned = {name: member("", data, name, int) for name in OLD_COSTS}
        return pruned, {name: member("", data, f"dense_{name}", int) for name in OLD_COSTS}
    pruned, dense = member("", data, "costs", dict), member("", data, "dense_costs", dict)
    return dict(pruned), dict(dense)


def _checked(axis: Axis, channels: Tensor | Sequence[int]) -> tuple[int, ...]:
    chosen = sorted(int(c) for c in channels)
    distinct = len(set(chosen)) == len(chosen)
    if not chosen or not distinct or chosen[0] < 0 or chosen[-1] >= axis.channels:
        some = f"{chosen[:8]}{'...' if len(chosen) > 8 else ''}"
        raise ValueError(
            f"PruningPlan: kept: expected 1 to {axis.channels} different channels of {axis.name}, "
            f"from 0 to {axis.channels - 1}, got {some}"
        )
    return tuple(chosen)
