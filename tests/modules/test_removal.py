"""What a user set on a network survives pruning, and sizes that layers repeat follow."""

from __future__ import annotations

import pytest
import torch
from blocks import BLOCKS, Residual, SharedWeights, Transposed, image
from plans import random_plan
from torch import Tensor, nn

from mdcp_fast.modules.removal import kept_tensor, rebuilt, remove
from mdcp_fast.tracing.trace import trace

HALF = torch.arange(0, 8, 2)
STEM = {
    "stem.weight": {0: HALF}, "bn.weight": {0: HALF}, "bn.bias": {0: HALF},
    "bn.running_mean": {0: HALF}, "bn.running_var": {0: HALF}, "a.weight": {1: HALF},
    "b.weight": {0: HALF}, "b.bias": {0: HALF}, "head.weight": {1: HALF},
}  # fmt: skip


def test_values_and_sizes() -> None:
    model = Residual()
    small = remove(model, STEM)
    assert torch.equal(small.a.weight, model.a.weight[:, HALF])
    assert torch.equal(small.bn.running_var, model.bn.running_var[HALF])
    assert (small.stem.out_channels, small.a.in_channels, small.b.out_channels) == (4, 4, 4)
    assert small.bn.num_features == 4 and small.a.out_channels == model.a.out_channels == 6
    assert type(small) is Residual and small(image()).shape == (2, 2, 6, 6)
    assert small.a.bias.data_ptr() != model.a.bias.data_ptr()


def test_what_was_set_survives() -> None:
    model = Residual().train()
    model.bn.eval()
    model.stem.weight.requires_grad_(False)
    model.note = {"epoch": 3}
    model(image()).sum().backward()
    small = remove(model, STEM)
    assert small.training and not small.bn.training and small.a.training
    frozen = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert frozen == ["stem.weight"]
    assert small.note == {"epoch": 3} and small.note is not model.note
    assert all(p.grad is None and p.is_leaf for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_survives(dtype: torch.dtype) -> None:
    model = Residual().to(dtype)
    graph = trace(model, image().to(dtype))
    assert [axis.name for axis in graph.axes] == ["stem", "a"]
    small = remove(model, random_plan(graph).positions)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small.bn.num_batches_tracked.dtype == torch.int64
    assert small(image().to(dtype)).dtype == dtype


def test_memory_format_survives() -> None:
    small = remove(Residual().to(memory_format=torch.channels_last), STEM)
    convolutions = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert all(
        conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convolutions
    )
    assert small(image().contiguous(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last
    )
    volume = torch.randn(4, 6, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    kept = kept_tensor(volume, {0: torch.tensor([1, 2])})
    assert kept.is_contiguous(memory_format=torch.channels_last_3d)
    assert kept_tensor(torch.randn(4, 6, 1, 1), {0: torch.tensor([1])}).is_contiguous()


def test_device_survives() -> None:
    small = remove(Residual().to("meta"), STEM)
    assert {t.device.type for t in small.state_dict().values()} == {"meta"}


def test_removal_in_inference_mode_gives_parameters_to_train() -> None:
    model = Residual()
    with torch.inference_mode():
        small = remove(model, STEM)
    small(image()).sum().backward()


def test_hooks_survive() -> None:
    seen: list[torch.Size] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.shape)

    model = Residual()
    model.a.register_forward_hook(hook)
    remove(model, STEM)(image())
    assert seen == [(2, 6, 6, 6)]


def test_shared_weights_stay_shared() -> None:
    model = SharedWeights()
    graph = trace(model, image(), check=False)
    small = remove(model, random_plan(graph).positions)
    assert small.c.weight is small.b.weight and small.decode.weight is small.encode.weight
    assert small.encode.weight.shape[0] == graph.axes[1].channels or small.encode.out_channels < 4


def test_groups_follow() -> None:
    block = BLOCKS["depthwise with multiplier"]
    graph = trace(block.make(), block.inputs, check=False)
    small = remove(graph.model, graph.positions([[1, 4]]))
    assert (small.dw.in_channels, small.dw.out_channels, small.dw.groups) == (2, 6, 2)
    assert "2, 6," in repr(small.dw) and "groups=2" in repr(small.dw)
    graph = trace(Transposed(8), image(), check=False)
    up = remove(graph.model, graph.positions([[0, 3, 5]])).up
    assert (up.in_channels, up.out_channels, up.groups) == (3, 3, 3)
    graph = trace(Transposed(2), image(), check=False)
    up = remove(graph.model, graph.positions([[0, 3, 1], [2, 1]])).up
    assert (up.in_channels, up.out_channels, up.groups) == (6, 4, 2)


def test_sizes_of_normalisations_follow() -> None:
    model = nn.ModuleDict(
        {
            "group": nn.GroupNorm(2, 8),
            "layer": nn.LayerNorm(8),
            "act": nn.PReLU(8),
            "linear": nn.Linear(8, 8),
            "plain": nn.BatchNorm1d(8, affine=False),
        }
    )
    names = [f"{n}.{p}" for n in ("group", "layer") for p in ("weight", "bias")] + ["act.weight"]
    names += ["plain.running_mean", "plain.running_var"]
    small = remove(model, {n: {0: HALF} for n in names} | {"linear.weight": {1: HALF}})
    assert small["group"].num_channels == small["act"].num_parameters == 4
    assert small["layer"].normalized_shape == (4,)
    assert (small["linear"].in_features, small["linear"].out_features) == (4, 8)
    assert small["plain"].num_features == 4


def test_weights_made_by_hooks_can_be_copied() -> None:
    model = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    model(image()).sum().backward()
    copied = rebuilt(model, lambda tensor: tensor.detach().clone())
    assert torch.equal(copied(image()), model(image()))


def test_a_copy_has_hooks_of_its_own() -> None:
    """Also where the module had none, whose empty containers are not deep-copied."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    copied = rebuilt(model, torch.clone)
    calls: list[nn.Module] = []
    copied[0].register_forward_hook(lambda module, *_: calls.append(module))
    copied[1].register_buffer("late", torch.ones(1), persistent=False)
    model(image())
    assert not calls and list(model.buffers()) == [] and "1.late" not in copied.state_dict()
    model[1].register_buffer("late", torch.ones(1))
    copied(image())
    assert calls == [copied[0]] and "1.late" in model.state_dict()


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"stems.weight": {0: HALF}}, "expected a network with .* 'stems.weight', got a Residual"),
        ({"stem": {0: HALF}}, "'stem'"),
        ({"stem.weight": {4: HALF}}, "stem.weight: expected a dimension 4, got shape"),
        ({"stem.weight": {0: HALF + 2}}, "expected increasing positions from 0 to 7"),
        ({"stem.weight": {0: HALF - 1}}, "expected increasing positions"),
        ({"stem.weight": {0: HALF.flip(0)}}, "expected increasing positions"),
        ({"stem.weight": {0: HALF[:0]}}, "expected positions to keep along 0, got none"),
    ],
)
def test_bad_positions(kept: dict[str, dict[int, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove(Residual(), kept)
