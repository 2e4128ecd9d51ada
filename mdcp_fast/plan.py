"""PruningPlan: which channels stay, and why; printable, JSON, and applicable to an optimizer's state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.graph import Axis, ChannelGraph, FixedAxis
from mdcp_fast.removal import kept_tensor

FORMAT = 1


@dataclass(frozen=True)
class AxisPlan:
    """What happens to one axis.

    Attributes:
        name: The axis's name in the graph.
        channels: Its dense width.
        kept: Indices of the channels that stay, increasing.
        clusters: Cluster of every channel, or None where the channels were not clustered.
        reason: Why the axis was left whole, or why a wish (`round_to`) could not be met; None otherwise.
    """

    name: str
    channels: int
    kept: tuple[int, ...]
    clusters: tuple[int, ...] | None = None
    reason: str | None = None

    @property
    def width(self) -> int:
        return len(self.kept)


@dataclass(frozen=True)
class PruningPlan:
    """What to keep of a network. Made by `search` or `PruningPlan.build`, carried out by `prune`.

    Attributes:
        axes: One entry for each axis of the graph.
        fixed: What may not be pruned, with reasons.
        positions: Kept positions, int64, by parameter (or buffer) and dimension; only those that lose something.
        macs, params: Of the pruned network.
        dense_macs, dense_params: Of the dense network.
        budget: The fractions asked for, e.g. {"macs": 0.45}.
        settings: How the plan was found (descriptor, seed, ...); plain JSON values.
        history: Best fitness after each generation of the search.
    """

    axes: tuple[AxisPlan, ...]
    fixed: tuple[FixedAxis, ...]
    positions: dict[str, dict[int, Tensor]]
    macs: int
    params: int
    dense_macs: int
    dense_params: int
    budget: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    history: tuple[float, ...] = ()

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
    ) -> PruningPlan:
        """Makes a plan from the channels to keep of each axis.

        Args:
            graph: The traced network.
            kept: For each of `graph.axes`, the channels that stay (at least one, no repeats, in any order).
            clusters: For each axis, the cluster of every channel, or None.
            budget, settings, history: See the attributes.
            notes: Reasons by axis name.

        Raises:
            ValueError: `kept` does not fit the axes.
        """
        if len(kept) != len(graph.axes):
            raise ValueError(
                f"PruningPlan: kept should have {len(graph.axes)} entries, one an axis, got {len(kept)}"
            )
        notes = notes or {}
        plans = []
        for index, (axis, channels) in enumerate(zip(graph.axes, kept, strict=True)):
            chosen = _checked(axis, channels)
            labels = clusters[index] if clusters is not None else None
            named = None if labels is None else tuple(int(c) for c in labels)
            plans.append(AxisPlan(axis.name, axis.channels, chosen, named, notes.get(axis.name)))
        widths = torch.tensor([plan.width for plan in plans], dtype=torch.int64)
        macs, params = graph.cost.evaluate(widths).tolist()
        return cls(
            axes=tuple(plans),
            fixed=graph.fixed,
            positions=graph.positions([plan.kept for plan in plans]),
            macs=macs,
            params=params,
            dense_macs=graph.macs,
            dense_params=graph.params,
            budget=dict(budget or {}),
            settings=dict(settings or {}),
            history=tuple(float(h) for h in history),
        )

    def kept(self, parameter: str, dimension: int) -> Tensor | None:
        """Old positions that stay along a parameter's dimension, int64 in their new order; None where all stay.

        Args:
            parameter: Fully qualified name of a parameter or buffer.
            dimension: Its dimension.
        """
        found = self.positions.get(parameter, {}).get(dimension)
        return None if found is None else found.clone()

    def apply_to_optimizer(
        self, optimizer: torch.optim.Optimizer, dense: nn.Module, small: nn.Module
    ) -> torch.optim.Optimizer:
        """A new optimizer for the pruned network that goes on where the dense network's optimizer was.

        State tensors of a parameter's shape (momentum, Adam's averages) lose the positions the parameter lost.

        Args:
            optimizer: The dense network's optimizer; not changed.
            dense: The network that `optimizer` trains.
            small: What `prune` returned for this plan.

        Returns:
            An optimizer of the same class with the same parameter groups and options.

        Raises:
            ValueError: `optimizer` trains a parameter that is not in `dense`, or `small` does not follow this plan.
        """
        names = {id(parameter): name for name, parameter in dense.named_parameters()}
        twins = dict(small.named_parameters())
        groups, states = [], {}
        for group in optimizer.param_groups:
            members = []
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name is None or name not in twins:
                    raise ValueError(
                        "apply_to_optimizer: optimizer should train parameters of `dense`, got a foreign one"
                    )
                dimensions = self.positions.get(name, {})
                expected = kept_tensor(parameter, dimensions).shape
                if twins[name].shape != expected:
                    raise ValueError(
                        f"apply_to_optimizer: small should have {name} of shape {tuple(expected)} by this plan, "
                        f"got {tuple(twins[name].shape)}"
                    )
                members.append(twins[name])
                states[twins[name]] = {
                    key: kept_tensor(value, dimensions)
                    if isinstance(value, Tensor) and value.shape == parameter.shape
                    else (value.clone() if isinstance(value, Tensor) else value)
                    for key, value in optimizer.state.get(parameter, {}).items()
                }
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": members})
        follower = type(optimizer)(groups, **_constructor_options(optimizer))
        for parameter, state in states.items():
            if state:
                follower.state[parameter] = state
        return follower

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back."""
        return json.dumps(
            {
                "format": FORMAT,
                "macs": self.macs,
                "params": self.params,
                "dense_macs": self.dense_macs,
                "dense_params": self.dense_params,
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
                    }
                    for axis in self.axes
                ],
                "fixed": [
                    {"name": f.name, "channels": f.channels, "reason": f.reason} for f in self.fixed
                ],
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
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"PruningPlan: format should be {FORMAT}, got {data['format']}")
            return cls(
                axes=tuple(
                    AxisPlan(
                        a["name"],
                        a["channels"],
                        tuple(a["kept"]),
                        None if a["clusters"] is None else tuple(a["clusters"]),
                        a["reason"],
                    )
                    for a in data["axes"]
                ),
                fixed=tuple(
                    FixedAxis(f["name"], f["channels"], f["reason"]) for f in data["fixed"]
                ),
                positions={
                    name: {
                        int(d): torch.tensor(kept, dtype=torch.int64) for d, kept in dims.items()
                    }
                    for name, dims in data["positions"].items()
                },
                macs=data["macs"],
                params=data["params"],
                dense_macs=data["dense_macs"],
                dense_params=data["dense_params"],
                budget=data["budget"],
                settings=data["settings"],
                history=tuple(data["history"]),
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"PruningPlan: text should be a plan written by to_json, got {type(error).__name__}: {error}"
            ) from error

    def __str__(self) -> str:
        macs, params = self.macs / max(self.dense_macs, 1), self.params / max(self.dense_params, 1)
        lines = [
            f"PruningPlan: {self.macs:,} of {self.dense_macs:,} MACs ({macs:.1%}), {self.params:,} of "
            f"{self.dense_params:,} parameters ({params:.1%})"
        ]
        wide = max((len(axis.name) for axis in self.axes), default=0)
        for axis in self.axes:
            note = f"  ({axis.reason})" if axis.reason else ""
            lines.append(f"  {axis.name:<{wide}}  {axis.channels:>5} -> {axis.width:<5}{note}")
        if self.fixed:
            lines.append("Left whole:")
            lines += [f"  {one.name}: {one.channels} channels: {one.reason}" for one in self.fixed]
        return "\n".join(lines)


def _checked(axis: Axis, channels: Tensor | Sequence[int]) -> tuple[int, ...]:
    chosen = sorted(int(c) for c in channels)
    if (
        not chosen
        or len(set(chosen)) != len(chosen)
        or chosen[0] < 0
        or chosen[-1] >= axis.channels
    ):
        raise ValueError(
            f"PruningPlan: kept of {axis.name} should be 1 to {axis.channels} different channels below {axis.channels}, "
            f"got {chosen[:8]}{'...' if len(chosen) > 8 else ''}"
        )
    return tuple(chosen)


def _constructor_options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    import inspect

    accepted = inspect.signature(type(optimizer).__init__).parameters
    return {key: value for key, value in optimizer.defaults.items() if key in accepted}
