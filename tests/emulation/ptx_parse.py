"""Reads PTX text: variables, functions and kernels, each kernel as a flat list of instructions.

Names declared in a nested scope are made unique, so that a function has one set of names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

TYPE_BYTES = {"pred": 1, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f16x2": 4, "bf16x2": 4}
TYPE_BYTES |= {f"{kind}{8 * size}": size for kind in "bus" for size in (1, 2, 4, 8)}
TYPE_BYTES |= {"f32x2": 8}

_TOKEN = re.compile(r'"[^"]*"|[\w$%.]+(?:::[\w.]+)*|[{}()\[\],;:@!|+\-<>=]|\n|\S')
_NOT_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/|^[ \t]*\.(?:loc|file)\b[^\n]*|\.section\s+\S+\s*\{[^}]*\}",
    re.DOTALL | re.MULTILINE,
)
_LINKAGE = {".visible", ".extern", ".weak", ".common"}
_SPACES = {".global", ".const", ".shared", ".local", ".param"}


class PtxError(Exception):
    """What is wrong with a piece of PTX or with a run of it, and where."""


@dataclass(frozen=True)
class Name:
    """A register, or the address of a variable."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A number: an integer, or the bits of a float ("f32", "f64")."""

    value: int
    kind: str = "int"


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Operand
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Negated:
    """!p."""

    item: Operand


@dataclass(frozen=True)
class Both:
    """p|q: two results."""

    first: Operand
    second: Operand


Operand = Name | Immediate | Address | Vector | Negated | Both


@dataclass(frozen=True)
class Instruction:
    """One instruction; `parts` is its opcode split at the dots."""

    line: int
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Operand | None = None

    @property
    def opcode(self) -> str:
        return ".".join(self.parts)


@dataclass
class Variable:
    """`size` bytes of a space, at `offset` once they are laid out; `initial` may be shorter."""

    name: str
    space: str
    align: int
    size: int
    initial: bytes = b""
    unsized: bool = False  # dynamic shared memory
    offset: int = 0


@dataclass
class Function:
    """A kernel or a device function."""

    name: str
    is_kernel: bool
    parameters: list[Variable] = field(default_factory=list)
    results: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name: type
    variables: dict[str, Variable] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name: position in instructions

    def parameter_layout(self) -> int:
        """Gives every parameter its offset; the bytes of all of them."""
        return lay_out(self.parameters)


@dataclass
class Program:
    """A parsed PTX module."""

    functions: dict[str, Function]
    variables: dict[str, Variable]
    lines: list[str]


def lay_out(variables: Sequence[Variable], start: int = 0) -> int:
    """Gives every variable the next offset that its alignment allows; the end of the last one."""
    for variable in variables:
        variable.offset = -(-start // variable.align) * variable.align
        start = variable.offset + variable.size
    return start


def parse(text: str) -> Program:
    """The program of a PTX text."""
    return _Parser(text).program()


class _Parser:
    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        code = _NOT_CODE.sub(lambda match: "\n" * match.group().count("\n"), text)
        self.tokens: list[tuple[str, int]] = []
        line = 1
        for token in _TOKEN.findall(code):
            if token == "\n":
                line += 1
            else:
                self.tokens.append((token, line))
        self.at = 0
        self.scopes = 0

    # Tokens

    def peek(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at][0] if at < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if token == "" or (wanted is not None and token != wanted):
            self.fail(f"expected {wanted or 'more'!r}, got {token or 'the end'!r}")
        self.at += 1
        return token

    def accept(self, wanted: str) -> bool:
        if self.peek() != wanted:
            return False
        self.at += 1
        return True

    def fail(self, message: str) -> None:
        line = self.tokens[min(self.at, len(self.tokens) - 1)][1]
        raise PtxError(f"line {line}: {message}: {self.lines[line - 1].strip()}")

    def skip_past(self, wanted: str) -> None:
        while self.take() != wanted:
            pass

    # Module level

    def program(self) -> Program:
        functions: dict[str, Function] = {}
        variables: dict[str, Variable] = {}
        while self.peek():
            if self.peek() in (".version", ".address_size"):
                self.at += 2
            elif self.accept(".target"):
                self.take()
                while self.accept(","):
                    self.take()
            elif self.peek() in _LINKAGE:
                self.at += 1
            elif self.peek() in (".entry", ".func"):
                function = self.function()
                if function.instructions or function.name not in functions:
                    functions[function.name] = function
            elif self.peek() in _SPACES:
                for variable in self.variable_list():
                    variables[variable.name] = variable
            else:
                self.fail("unknown directive")
        return Program(functions, variables, self.lines)

    def function(self) -> Function:
        is_kernel = self.take() == ".entry"
        while self.peek().startswith(".") and self.peek() != ".param":  # .func .noreturn
            self.take()
        results = self.parameter_list() if self.peek() == "(" else []
        function = Function(self.take(), is_kernel, results=results)
        if self.peek() == "(":
            function.parameters = self.parameter_list()
        while self.peek() not in ("{", ";"):  # .maxntid 128, 1, 1
            self.take()
        if self.take() == "{":
            for item in (*function.results, *function.parameters):
                function.variables[item.name] = item
            self.body(function, [])
        return function

    def parameter_list(self) -> list[Variable]:
        self.take("(")
        found: list[Variable] = []
        while not self.accept(")"):
            found += self.declaration("param" if self.peek() == ".param" else "reg")
            self.accept(",")
        return found

    # Declarations

    def variable_list(self) -> list[Variable]:
        found = self.declaration(self.peek()[1:])
        while self.accept(","):
            found.append(replace(found[0], name=self.take()))
        self.take(";")
        return found

    def declaration(self, space: str) -> list[Variable]:
        """`.space .align 8 .b8 name[32] = {...}`, without what follows it."""
        self.take()
        align, element, kind, pointer = 0, 0, "b8", False
        while self.peek().startswith("."):
            word = self.take()
            if word == ".align":
                number = int(self.take())
                align = align if pointer else number  # after .ptr: of what it points to
            elif word == ".v2" or word == ".v4":
                element = int(word[2:])
            elif word[1:] in TYPE_BYTES:
                kind = word[1:]
            elif word == ".ptr":
                pointer = True
            elif word not in _SPACES:
                self.fail(f"unknown word {word!r} in a declaration")
        size = TYPE_BYTES[kind] * (element or 1)
        variable = Variable(self.take(), space, align or size, size)
        while self.accept("["):
            if self.accept("]"):
                variable.unsized, variable.size = True, 0
            else:
                variable.size *= int(self.take(), 0)
                self.take("]")
        if self.accept("="):
            variable.initial = self.initial_value(kind)
            variable.size = max(variable.size, len(variable.initial))
        return [variable]

    def initial_value(self, kind: str) -> bytes:
        if self.accept("{"):
            parts = []
            while not self.accept("}"):
                parts.append(self.initial_value(kind))
                self.accept(",")
            return b"".join(parts)
        number = self.operand(lambda name: name)
        if not isinstance(number, Immediate):
            self.fail("addresses as initial values are not supported")
        return struct.pack("<Q", number.value & (1 << 64) - 1)[: TYPE_BYTES[kind]]

    def registers(self, function: Function, scope: dict[str, str] | None) -> None:
        self.take(".reg")
        kind = self.take()[1:]
        while True:
            name = self.take()
            names = [name]
            if self.accept("<"):
                names = [f"{name}{i}" for i in range(int(self.take()))]
                self.take(">")
            for each in names:
                unique = each if scope is None else f"{each}@{self.scopes}"
                if scope is not None:
                    scope[each] = unique
                function.registers[unique] = kind
            if not self.accept(","):
                break
        self.take(";")

    # Bodies

    def body(self, function: Function, scopes: list[dict[str, str]]) -> None:
        """Statements up to the closing brace, in the innermost of `scopes`."""
        scope = scopes[-1] if scopes else None

        def resolve(name: str) -> str:
            for names in reversed(scopes):
                if name in names:
                    return names[name]
            return name

        while not self.accept("}"):
            token = self.peek()
            if token == "{":
                self.take()
                self.scopes += 1
                self.body(function, [*scopes, {}])
            elif token == ".reg":
                self.registers(function, scope)
            elif token in _SPACES:
                for variable in self.variable_list():
                    if scope is not None:
                        scope[variable.name] = f"{variable.name}@{self.scopes}"
                        variable.name = scope[variable.name]
                    function.variables[variable.name] = variable
            elif token == ".pragma":
                self.skip_past(";")
            elif self.peek(1) == ":" and self.peek(2) == ".branchtargets":
                name = self.take()
                self.at += 2
                function.tables[name] = [self.take()]
                while self.accept(","):
                    function.tables[name].append(self.take())
                self.take(";")
            elif self.peek(1) == ":":
                label = self.take()
                if scope is not None:
                    scope.setdefault(label, label)
                function.labels[label] = len(function.instructions)
                self.take(":")
            elif token.startswith("."):
                self.fail(f"unknown directive {token!r}")
            else:
                function.instructions.append(self.instruction(resolve))

    def instruction(self, resolve) -> Instruction:
        line = self.tokens[self.at][1]
        guard: Operand | None = None
        if self.accept("@"):
            negated = self.accept("!")
            guard = Name(resolve(self.take()))
            guard = Negated(guard) if negated else guard
        parts = tuple(self.take().split("."))
        operands = []
        while not self.accept(";"):
            operands.append(self.operand(resolve))
            self.accept(",")
        return Instruction(line, parts, tuple(operands), guard)

    def operand(self, resolve) -> Operand:
        if self.peek() in ("{", "("):
            close = {"{": "}", "(": ")"}[self.take()]
            items = []
            while not self.accept(close):
                items.append(self.operand(resolve))
                self.accept(",")
            return Vector(tuple(items))
        if self.accept("["):
            base = self.operand(resolve)
            self.take("]")
            return base if isinstance(base, Address) else Address(base)
        if self.accept("!"):
            return Negated(self.operand(resolve))
        sign = -1 if self.accept("-") else 1
        token = self.take()
        item = _immediate(token, sign) or Name(resolve(token))
        if self.accept("|"):
            return Both(item, self.operand(resolve))
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            sign = -sign if self.accept("-") else sign
            before = item.offset if isinstance(item, Address) else 0
            base = item.base if isinstance(item, Address) else item
            item = Address(base, before + sign * int(self.take().rstrip("U"), 0))
        return item


def _immediate(token: str, sign: int) -> Immediate | None:
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", token):
        return Immediate(int(token[2:], 16) ^ ((sign < 0) << 31), "f32")
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", token):
        return Immediate(int(token[2:], 16) ^ ((sign < 0) << 63), "f64")
    if re.fullmatch(r"\d+\.\d*", token):
        return Immediate(int.from_bytes(struct.pack("<d", sign * float(token)), "little"), "f64")
    if re.fullmatch(r"0[xX][0-9a-fA-F]+U?|\d+U?", token):
        digits = token.rstrip("U")
        octal = re.fullmatch(r"0[0-7]+", digits)
        return Immediate(sign * (int(digits, 8) if octal else int(digits, 0)))
    return None


def names_in(operand: Operand | None) -> Iterator[str]:
    """Every name that an operand mentions."""
    match operand:
        case Name(name):
            yield name
        case Address(item, _) | Negated(item):
            yield from names_in(item)
        case Vector(items):
            for each in items:
                yield from names_in(each)
        case Both(first, second):
            yield from names_in(first)
            yield from names_in(second)
