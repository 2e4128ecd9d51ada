"""Walks captured graphs, node by node, and applies to each op its rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node

from mdcp_fast.modules.mac_formulas import is_counted
from mdcp_fast.tracing.labels import elementwise, layers, movement, products, weights, zeros
from mdcp_fast.tracing.labels.label_tensors import none
from mdcp_fast.tracing.labels.linearity import note_nonlinear
from mdcp_fast.tracing.labels.state import Call, Rules, Walk, op_name

RULES: Rules = {**layers.RULES, **products.RULES, **elementwise.RULES, **movement.RULES}

# Ops that run a part of the network in another mode.
REGIONS = (
    "wrap_with_set_grad_enabled",
    "wrap_with_autocast",
    "wrap_activation_checkpoint",
    "tag_activation_checkpoint",
)

# What a rule raises where an op is used in a way that the rule does not foresee.
UNFORESEEN = (RuntimeError, IndexError, TypeError, KeyError, ValueError, AttributeError)


def walk_program(
    walk: Walk, program: torch.export.ExportedProgram, same: Mapping[str, str] | None = None
) -> None:
    """Adds what one captured graph says about a network's channels.

    Args:
        walk: The state so far; labels of parameters met in an earlier graph are merged with these.
        program: The captured graph.
        same: Names of shared parameters, each with the name under which they are all known.
    """
    walk.enter(program, dict(same or {}))
    for node in program.graph.nodes:
        _visit(walk, node)


def _visit(walk: Walk, node: Node) -> None:
    value = node.meta.get("val")
    walk.note_constant(node)
    if node.op == "placeholder":
        if not walk.is_parameter(node) and isinstance(value, Tensor):
            walk.set_labels(node, none(value.shape))
    elif node.op == "output":
        for source in node.all_input_nodes:
            walk.fix(walk.labels(source), "the network's output")
    elif node.op == "call_function":
        if op_name(node) in REGIONS:
            _visit_region(walk, node)
            return
        call = Call.of(node)
        if not is_counted(node.target):
            walk.all_known = False
            walk.uncounted.append(" in ".join(filter(None, (call.name, call.path))))
        rule = RULES.get(call.name, Walk.unknown)
        try:
            if weights.visit(walk, call):
                return
            labels = rule(walk, call)
        except UNFORESEEN:
            labels = walk.unknown(call)
        walk.set_labels(node, labels)
        note_nonlinear(walk, call)
        zeros.note(walk, call)


def _visit_region(walk: Walk, node: Node) -> None:
    """An op that runs a graph of its own in some mode: what it does is done in its place."""
    at = next(
        i for i, one in enumerate(node.args) if isinstance(one, Node) and one.op == "get_attr"
    )
    body = getattr(node.graph.owning_module, str(node.args[at].target)).graph  # type: ignore[union-attr]
    given = iter(node.args[at + 1 :])
    for inner in body.nodes:
        if inner.op == "placeholder":
            walk.stands_for(inner, next(given))
        elif inner.op == "output":
            walk.set_labels(node, walk.labels(inner.args[0]))
        else:
            _visit(walk, inner)
