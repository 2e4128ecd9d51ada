"""Puts the bodies of a module's own functions in the place of their calls."""

from __future__ import annotations

from dataclasses import replace

from emulation.ptx_parse import (
    Address,
    Both,
    Function,
    Instruction,
    Name,
    Negated,
    Operand,
    PtxError,
    Vector,
)

MOST_CALLS = 1000  # in a kernel; more are a recursion


def inline_calls(kernel: Function, functions: dict[str, Function]) -> None:
    """Replaces every call of one of the functions; calls of others raise where they are run."""
    at, sites = 0, 0
    while at < len(kernel.instructions):
        call = kernel.instructions[at]
        if call.parts[0] != "call":
            at += 1
            continue
        sites += 1
        target = next((item for item in call.operands if isinstance(item, Name)), None)
        callee = functions.get(target.name) if target else None
        if callee is None or not callee.instructions:
            at += 1
            continue
        if call.guard is not None or sites > MOST_CALLS:
            what = "a call under a predicate" if call.guard is not None else "recursive calls"
            raise PtxError(f"line {call.line}: {what} of {callee.name}")
        _splice(kernel, at, call, callee, f"#{callee.name}{sites}")
        # What was put in may call in its turn, and is looked at next.


def _splice(kernel: Function, at: int, call: Instruction, callee: Function, suffix: str) -> None:
    names = {name: name + suffix for name in (*callee.registers, *callee.labels)}
    names |= {name: name + suffix for name in (*callee.variables, *callee.tables)}
    vectors = [item.items for item in call.operands if isinstance(item, Vector)]
    position = next(i for i, item in enumerate(call.operands) if isinstance(item, Name))
    given = vectors[0] if position == 1 else ()
    taken = vectors[-1] if position < len(call.operands) - 1 else ()
    for formals, actuals in ((callee.results, given), (callee.parameters, taken)):
        for formal, actual in zip(formals, actuals, strict=True):
            assert isinstance(actual, Name)
            names[formal.name] = actual.name
    for name, kind in callee.registers.items():
        kernel.registers[names[name]] = kind
    for name, variable in callee.variables.items():
        if names[name] not in kernel.variables:
            kernel.variables[names[name]] = replace(variable, name=names[name])
    for name, labels in callee.tables.items():
        kernel.tables[names[name]] = [names[label] for label in labels]
    end = f"end{suffix}"
    body = []
    for instruction in callee.instructions:
        instruction = replace(
            instruction,
            operands=tuple(_renamed(item, names) for item in instruction.operands),
            guard=_renamed(instruction.guard, names) if instruction.guard else None,
        )
        if instruction.parts[0] == "ret":
            instruction = replace(instruction, parts=("bra",), operands=(Name(end),))
        body.append(instruction)
    kernel.labels = {
        label: where + (len(body) - 1 if where > at else 0)
        for label, where in kernel.labels.items()
    }
    kernel.labels |= {names[label]: at + where for label, where in callee.labels.items()}
    kernel.labels[end] = at + len(body)
    kernel.instructions[at : at + 1] = body


def _renamed(operand: Operand, names: dict[str, str]) -> Operand:
    match operand:
        case Name(name):
            return Name(names.get(name, name))
        case Address(base, offset):
            return Address(_renamed(base, names), offset)
        case Vector(items):
            return Vector(tuple(_renamed(item, names) for item in items))
        case Negated(item):
            return Negated(_renamed(item, names))
        case Both(first, second):
            return Both(_renamed(first, names), _renamed(second, names))
    return operand
