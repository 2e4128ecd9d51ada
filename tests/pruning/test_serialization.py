"""A saved network loads anywhere without pickle; a file is whole or not there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import BLOCKS, DenseConcatenation, Residual, SharedWeights, image
from plans import random_plan
from processes import run_python
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import mdcp_fast
from mdcp_fast.modules.files import atomic_write
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.serialization import load, save
from mdcp_fast.tracing.trace import trace

ROOT = Path(mdcp_fast.__file__).parent.parent


def pruned(model: nn.Module) -> tuple[nn.Module, PruningPlan]:
    graph = trace(model, image(), check=False)
    plan = random_plan(graph, seed=4)
    return prune(graph, plan, check=False), plan


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    small, plan = pruned(Residual())
    small.stem.weight.requires_grad_(False)
    path = tmp_path / "small.safetensors"
    save(path, small, plan)
    return path, small


def test_what_is_loaded_is_what_was_saved(saved: tuple[Path, nn.Module]) -> None:
    path, small = saved
    loaded = load(path, Residual)
    assert type(loaded) is Residual and not loaded.training
    assert torch.equal(loaded(image()), small.eval()(image()))
    assert loaded.bn.num_features == small.bn.num_features
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["stem.weight"]
    assert os.listdir(path.parent) == [path.name]


def test_in_a_fresh_process(saved: tuple[Path, nn.Module]) -> None:
    path, small = saved
    code = f"""
        import pickle
        def refuse(*_, **__): raise AssertionError("unpickled")
        pickle.load = pickle.loads = pickle.Unpickler = refuse
        from blocks import Residual, image
        from mdcp_fast.pruning.serialization import load
        print(load({str(path)!r}, Residual)(image()).double().sum().item())
    """
    run = run_python(code, folder=path.parent)
    assert float(run.stdout) == pytest.approx(small.eval()(image()).double().sum().item())


def test_the_file_is_plain_safetensors(saved: tuple[Path, nn.Module]) -> None:
    path, small = saved
    tensors = load_file(path)
    assert set(tensors) == set(small.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    small, plan = pruned(Residual())
    save(tmp_path / "small", small.to(dtype), plan)
    loaded = load(tmp_path / "small", Residual)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(loaded.a.weight, small.a.weight)


def test_channels_last_networks_can_be_saved(tmp_path: Path) -> None:
    small, plan = pruned(Residual().to(memory_format=torch.channels_last))
    save(tmp_path / "small", small, plan)
    loaded = load(tmp_path / "small", Residual)
    assert torch.equal(loaded.a.weight, small.a.weight)


def test_shared_weights_come_back_shared(tmp_path: Path) -> None:
    small, plan = pruned(SharedWeights())
    save(tmp_path / "small", small, plan)
    loaded = load(tmp_path / "small", SharedWeights)
    assert loaded.c.weight is loaded.b.weight
    assert torch.equal(loaded(image()), small.eval()(image()))


def test_saving_over_a_file_replaces_it(saved: tuple[Path, nn.Module]) -> None:
    path, _ = saved
    small, plan = pruned(DenseConcatenation())
    save(path, small, plan)
    assert torch.equal(load(path, DenseConcatenation)(image()), small.eval()(image()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[: len(data) // 2], "expected a whole safetensors file"),
        (lambda data: data[:5], "expected a whole safetensors file"),
        (lambda data: b"", "expected a whole safetensors file"),
        (lambda data: b"PK\x03\x04" + data, "expected a whole safetensors file"),
        (
            lambda data: data.replace(b"mdcp_fast.plan", b"mdcp_fast.plam"),
            "expected a file written by",
        ),
        (lambda data: data.replace(b'\\"macs\\"', b'\\"mags\\"', 1), "expected a pruning plan"),
    ],
)
def test_spoilt_and_foreign_files_are_refused(
    saved: tuple[Path, nn.Module], spoil: Callable[[bytes], bytes], message: str
) -> None:
    path, _ = saved
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"load: path: {message}"):
        load(path, Residual)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "small.pt")
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        load(tmp_path / "small.pt", Residual)


@pytest.mark.parametrize(
    ("make_model", "error", "message"),
    [
        (lambda: DenseConcatenation(), ValueError, "expected the network that the plan was made f"),
        (lambda: nn.Sequential(Residual()), ValueError, "expected the network that the plan"),
        (lambda: "resnet", TypeError, "returns a torch.nn.Module, got str"),
        (Residual(), TypeError, "returns a torch.nn.Module|forward"),
        (3, TypeError, "expected a function without arguments, got int"),
    ],
)
def test_another_network_is_refused(
    saved: tuple[Path, nn.Module], make_model: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(saved[0], make_model)


def test_a_network_with_other_layers_is_refused(saved: tuple[Path, nn.Module]) -> None:
    class Wider(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)

    class Taller(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(8, 7, 3)

    with pytest.raises(ValueError, match=r"make_model: .*'extra.weight', 'extra.bias'"):
        load(saved[0], Wider)
    with pytest.raises(ValueError, match=r"with head.weight of shape \[2, .*, got \[7, "):
        load(saved[0], Taller)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="load: path: expected a file written by save"):
        load(tmp_path / "none", Residual)


def test_only_what_follows_the_plan_is_saved(tmp_path: Path) -> None:
    small, plan = pruned(Residual())
    with pytest.raises(ValueError, match="save: model: expected .* entries along dimension"):
        save(tmp_path / "small", Residual(), plan)
    with pytest.raises(ValueError, match="expected a network with a parameter or buffer"):
        save(tmp_path / "small", BLOCKS["U-Net"].make(), plan)
    with pytest.raises(TypeError, match="save: plan: expected a PruningPlan, got dict"):
        save(tmp_path / "small", small, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="save: model: expected a torch.nn.Module, got str"):
        save(tmp_path / "small", "small", plan)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_failing_write_leaves_the_old_file(
    saved: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, small = saved
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, *pruned(Residual()))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_a_kill_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text("old")
    code = f"""
        import os, signal
        from mdcp_fast.modules.files import atomic_write
        with atomic_write({str(path)!r}) as temporary:
            temporary.write_text("half of the n")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    run = run_python(code, folder=tmp_path, check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_written_file_has_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "whole") as temporary:
        temporary.write_text("new")
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "whole")}
    assert len(modes) == 1 and (tmp_path / "whole").read_text() == "new"


def test_a_network_of_another_size_is_refused(tmp_path: Path) -> None:
    """Even one that would come out at the same size, of which the plan says other channels."""
    net, wider = (
        nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3))
        for width in (8, 16)
    )
    graph = trace(net, image())
    plan = PruningPlan.build(graph, [[0, 2, 7]])
    save(tmp_path / "small", prune(graph, plan), plan)
    with pytest.raises(ValueError, match=r"one with 0.weight of shape \[8, 3, 3, 3\], got \[16, "):
        load(tmp_path / "small", lambda: wider)


def test_bytes_paths(saved: tuple[Path, nn.Module]) -> None:
    path, small = saved
    other = os.fsencode(path.parent) + b"/\xff \xc3\x28"
    save(other, small, PruningPlan.from_json(metadata_of(path)["mdcp_fast.plan"]))
    assert torch.equal(load(other, Residual)(image()), small.eval()(image()))
    assert torch.equal(load(os.fsencode(path), Residual)(image()), small.eval()(image()))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """Another file of the same tensors and metadata but for `change`."""
    tensors, metadata = load_file(path), metadata_of(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, m: t.update({"a.weight": t["a.weight"].to(torch.complex64)}),
            "of torch.complex6",
        ),
        (lambda t, m: t.update({"a.weight": t["a.weight"].to(torch.int32)}), "of torch.int32, got"),
        (lambda t, m: t.update({"a.weight": t["a.weight"].bool()}), "of torch.bool, got"),
        (
            lambda t, m: t.update({"bn.num_batches_tracked": torch.tensor(0.5)}),
            "bn.num_batches_tracked of torch.float32, got torch.int64",
        ),
        (
            lambda t, m: t.update({"bn.num_batches_tracked": torch.tensor(3, dtype=torch.int32)}),
            "of",
        ),
        (lambda t, m: m.update({"mdcp_fast.frozen": "{}"}), "frozen: expected a list of names"),
        (lambda t, m: m.update({"mdcp_fast.frozen": "[3]"}), "frozen: expected a list of names"),
        (lambda t, m: m.update({"mdcp_fast.frozen": "[" * 99999}), "nested too deeply"),
        (lambda t, m: m.update({"mdcp_fast.extra_state": "[]"}), "extra_state: expected an object"),
        (
            lambda t, m: m.update({"mdcp_fast.extra_state": '{"a._extra_state": 1}'}),
            "without .'a._extra_state'",
        ),
    ],
)
def test_relabelled_content_is_refused(
    saved: tuple[Path, nn.Module], change: Callable[..., None], message: str
) -> None:
    path, _ = saved

    def without_digest(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        change(tensors, metadata)
        del metadata["mdcp_fast.digest"]

    rewrite(path, without_digest)
    with pytest.raises(ValueError, match=f"load: .*{message}"):
        load(path, Residual)


def test_files_of_versions_without_a_digest_are_read(saved: tuple[Path, nn.Module]) -> None:
    path, small = saved

    def old(_: Any, metadata: dict[str, str]) -> None:
        del metadata["mdcp_fast.digest"], metadata["mdcp_fast.extra_state"]

    rewrite(path, old)
    assert torch.equal(load(path, Residual)(image()), small.eval()(image()))


class Scaled(nn.Module):
    """Keeps something beside its tensors."""

    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.extra = extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class Outer(nn.Module):
    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.inner = Scaled(extra)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("kind", [Scaled, Outer])
@pytest.mark.parametrize(
    "extra",
    [
        {"scale": 0.1, "names": ["a", None], "on": True, "steps": 2**40},
        torch.arange(5.0),
        torch.tensor(3),
        torch.zeros(2, 0, dtype=torch.bool),
        None,
        "text",
        [],
        7,
    ],
    ids=str,
)
def test_extra_state_comes_back(tmp_path: Path, kind: type[nn.Module], extra: Any) -> None:
    model = kind(extra)
    small, plan = pruned(model)
    save(tmp_path / "small", small, plan)
    loaded = load(tmp_path / "small", kind)
    found = (loaded if kind is Scaled else loaded.inner).extra
    assert type(found) is type(extra)
    if isinstance(extra, torch.Tensor):
        assert found.dtype == extra.dtype and torch.equal(found, extra)
    else:
        assert found == extra
    assert torch.equal(loaded(image()), small.eval()(image()))


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ({1, 2}, "set"),
        ({"t": torch.ones(1)}, "dict"),
        ((1, 2), "tuple"),
        (float("nan"), "float"),
        ({1: 2}, "dict"),
        (2**70, "int"),
        (b"x", "bytes"),
    ],
)
def test_extra_state_that_would_not_come_back_is_refused_by_name(
    tmp_path: Path, extra: Any, kind: str
) -> None:
    small, plan = pruned(Outer(extra))
    with pytest.raises(ValueError, match=f"got {kind} as inner._extra_state"):
        save(tmp_path / "small", small, plan)
    assert os.listdir(tmp_path) == []


def test_extra_state_that_nobody_takes_back_is_refused_by_name(tmp_path: Path) -> None:
    class OneWay(Scaled):
        set_extra_state = nn.Module.set_extra_state

    small, plan = pruned(OneWay(3))
    with pytest.raises(
        ValueError, match="expected a set_extra_state .* none for _extra_state in On"
    ):
        save(tmp_path / "small", small, plan)
