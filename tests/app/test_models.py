"""Networks by name: built or refused with a reason; weights load without running code."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mdcp_fast.app.models import KNOWN, load_weights, make_model


@pytest.mark.parametrize("name", ["digits-resnet", "resnet20"])
@pytest.mark.parametrize("channels", [1, 3])
def test_own_networks_take_any_sizes(name: str, channels: int) -> None:
    model = make_model(name, num_classes=7, in_channels=channels)
    assert model(torch.randn(2, channels, 16, 16)).shape == (2, 7)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_resnet20_has_its_published_size() -> None:
    """0.27 M parameters (He et al., table 6); shortcuts by projection add under 3,000."""
    parameters = sum(p.numel() for p in make_model("resnet20").parameters())
    assert 268_000 < parameters < 275_000


def test_torchvision_by_either_name() -> None:
    pytest.importorskip("torchvision")
    for name in ("torchvision:resnet18", "resnet18"):
        assert make_model(name, num_classes=5).fc.out_features == 5
    with pytest.raises(
        ValueError, match="in_channels: expected 3 for torchvision's resnet18, got 1"
    ):
        make_model("resnet18", in_channels=1)


def test_timm_or_a_word_on_how_to_get_it() -> None:
    if importlib.util.find_spec("timm") is None:
        with pytest.raises(ImportError, match="pip install timm"):
            make_model("timm:resnet18")
    else:
        model = make_model("timm:resnet18", num_classes=5, in_channels=1).eval()
        assert model(torch.randn(1, 1, 32, 32)).shape == (1, 5)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        make_model("resnet18")
    with pytest.raises(ImportError, match="pip install timm"):
        make_model("timm:resnet18")


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_networks.py").write_text(
        "from torch import nn\n"
        "def linear(num_classes=3):\n    return nn.Linear(4, num_classes)\n"
        "def nothing():\n    return 1\n"
        "value = 2\n"
    )
    (tmp_path / "users_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_model("users_networks:linear", num_classes=6).out_features == 6
    assert make_model("users_networks:linear").out_features == 3
    with pytest.raises(TypeError, match="to return a torch.nn.Module, got int"):
        make_model("users_networks:nothing")
    with pytest.raises(ValueError, match="expected a callable 'value' in users_networks, got int"):
        make_model("users_networks:value")
    with pytest.raises(ValueError, match="expected a callable 'gone' in users_networks, got none"):
        make_model("users_networks:gone")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        make_model("users_broken:linear")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("no-such-network",), ValueError, "expected one of digits-resnet.*got 'no-such-network'"),
        (("torchvision:resnet",), ValueError, "got 'torchvision:resnet'; similar names: .*resnet"),
        (("no_such_module:f",), ValueError, "expected module:function with a module that can be"),
        ((3,), TypeError, "name: expected a string, got int"),
        (("resnet20", 0), ValueError, "num_classes: expected an integer of at least 1, got 0"),
        (("resnet20", 10, -1), ValueError, "in_channels: expected an integer of at least 1"),
    ],
)
def test_bad_names(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(error, match=message):
        make_model(*arguments)


def test_all_kinds_of_names_are_listed() -> None:
    for kind in ("digits-resnet", "resnet20", "torchvision:", "timm:", "module:function"):
        assert kind in KNOWN


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    source, target = make_model("digits-resnet"), make_model("digits-resnet")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        wrapped = {f"module.{name}": value for name, value in source.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": wrapped}, path)
    else:
        save_file(source.state_dict(), path)
    load_weights(target, path)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


class Payload:
    """Runs code when unpickled; a weights file must not be able to."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("code from the file was run",))


def test_bad_weights_change_nothing(tmp_path: Path) -> None:
    model = make_model("digits-resnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FileNotFoundError, match="path: expected a file of weights"):
        load_weights(model, tmp_path / "none.pt")
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ValueError, match="path: expected a whole file of weights"):
            load_weights(model, tmp_path / name)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(ValueError, match="path: expected a whole file of weights"):
        load_weights(model, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"path: expected a state_dict .* got list"):
        load_weights(model, tmp_path / "list.pt")
    torch.save(make_model("digits-resnet", num_classes=9).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"fc.weight \(expected \[10, .*, got \[9, "):
        load_weights(model, tmp_path / "other.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
