"""Imports go down from layer to layer, what is private stays so, what is public is documented."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mdcp_fast

PACKAGE = Path(mdcp_fast.__file__).parent
# What each package may import, besides itself.
BELOW = {
    "ops": set(),
    "modules": set(),
    "tracing": {"ops", "modules"},
    "pruning": {"ops", "modules", "tracing"},
    "planning": {"ops", "modules", "tracing", "pruning", "deployment"},
    "training": {"modules"},
    "deployment": {"modules"},
    "app": {"ops", "modules", "tracing", "pruning", "planning", "training", "deployment"},
}
MODULES = {
    ".".join(("mdcp_fast", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """What a file imports of mdcp_fast, anywhere in it: modules, and names in them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            found = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in found:
            if name is not None and f"{module}.{name}" in MODULES:
                module, name = f"{module}.{name}", None
            if module.split(".")[0] == "mdcp_fast":
                yield module, name


def package_of(module: str) -> str:
    """mdcp_fast.tracing.labels.walk -> tracing."""
    return module.split(".")[1] if "." in module else ""


def test_the_top_holds_the_packages_and_little_else() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    entries = {"_native" if name.startswith("_native.") else name for name in entries}
    assert entries - {"_native"} == {"__init__.py", "py.typed", *BELOW}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    own = package_of(name)
    if own == "":
        return
    for module, _ in imported(MODULES[name]):
        other = package_of(module)
        assert other in {own, *BELOW.get(own, ())}, f"{name} imports {module}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_package_reaches_into_another(name: str) -> None:
    for module, attribute in imported(MODULES[name]):
        if package_of(module) == package_of(name):
            continue
        private = [
            part for part in (*module.split("."), attribute) if part and part.startswith("_")
        ]
        assert not private, f"{name} imports {module}: {attribute}"


def test_no_imports_go_round_in_circles() -> None:
    graph = {
        name: {module for module, _ in imported(path) if module != name}
        for name, path in MODULES.items()
    }
    tuple(TopologicalSorter(graph).static_order())


# The rooms of layer kinds, and what else names one, with its reason.
KNOW_LAYERS = {
    "mdcp_fast.modules.layer_kinds": "the table",
    "mdcp_fast.modules.im2col": "its matrix part",
    "mdcp_fast.training.onednn": "a bug of 1x1 convolutions with strides, in two dimensions",
    "mdcp_fast.app.models": "builds networks",
}
NO_LAYERS = {"Module", "Parameter", "UninitializedParameter", "parameter"}
SIZES = {
    *("in_channels", "out_channels", "in_features", "out_features", "kernel_size", "dilation"),
    *("num_features", "num_channels", "num_parameters", "normalized_shape", "output_padding"),
}
REARRANGING = {"dim", "movedim", "unflatten", "transpose", "permute"}


def layer_knowledge(tree: ast.AST) -> Iterator[str]:
    """Where a file asks what kind of layer it has, or how a kind lays out its weight."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            classes = [n for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)]
            asks = any("nn." in ast.unparse(n) and n.attr not in NO_LAYERS for n in classes)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_weight = ast.unparse(node.func.value).split(".")[-1] == "weight"
            asks = of_weight and node.func.attr in REARRANGING
        elif isinstance(node, ast.Subscript):  # by a number: what lies there depends on the kind
            by_number = isinstance(node.slice, (ast.Constant, ast.Slice))
            asks = by_number and ast.unparse(node.value).endswith("weight.shape")
        else:
            asks = isinstance(node, ast.Attribute) and node.attr in SIZES
        if asks:
            yield ast.unparse(node)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - KNOW_LAYERS.keys()))
def test_kinds_of_layers_are_known_in_one_place(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert not list(layer_knowledge(tree)), f"ask mdcp_fast.modules.layer_kinds in {name}"


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(m, nn.Conv2d)",
        "isinstance(m, (nn.Module, nn.modules.batchnorm._BatchNorm))",
        "m.weight.dim()",
        "weight.shape[2:]",
        "layer.in_channels",
        "weight.movedim(1, 0)",
    ],
)
def test_knowledge_of_layers_is_seen(text: str) -> None:
    assert list(layer_knowledge(ast.parse(text)))
    assert not list(layer_knowledge(ast.parse("isinstance(m, (str, nn.Module)) and x.shape[0]")))


@pytest.mark.parametrize("name", mdcp_fast.__all__)
def test_public_names_hide_no_module(name: str) -> None:
    assert importlib.util.find_spec(f"mdcp_fast.{name}") is None


def test_packages_hide_no_module_of_theirs() -> None:
    """Nothing is imported into a package, where it would hide the module of the same name."""
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name != "mdcp_fast":
            for _, attribute in imported(path):
                assert f"{name}.{attribute}" not in MODULES, f"{name} imports {attribute}"


@pytest.mark.parametrize("name", mdcp_fast.__all__)
def test_public_names_are_documented(name: str) -> None:
    item = getattr(mdcp_fast, name)
    documentation = inspect.getdoc(item) or ""
    assert len(documentation.splitlines()) > 1
    if inspect.isfunction(item):
        assert "Args:" in documentation
        assert "Returns:" in documentation or inspect.signature(item).return_annotation == "None"
