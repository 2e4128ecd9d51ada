"""Each kind of layer says the truth about layers of its kind, and a new kind is one entry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.modules import layer_kinds
from mdcp_fast.modules.im2col import from_input_columns, input_columns
from mdcp_fast.modules.layer_kinds import (
    BATCH_NORM,
    CONVOLUTION,
    EMBEDDING,
    GROUP_NORM,
    INSTANCE_NORM,
    KINDS,
    LAYER_NORM,
    LINEAR,
    PRELU,
    RMS_NORM,
    TRANSPOSED,
    LayerKind,
    MatrixKind,
    batch_norms,
    kind_of,
    layers_of,
)
from mdcp_fast.modules.removal import remove
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.labels import OUTPUT, Walk, walk
from mdcp_fast.tracing.labels.label_tensors import spread
from mdcp_fast.tracing.labels.state import Call
from mdcp_fast.tracing.trace import trace

LAYERS: dict[str, tuple[nn.Module, LayerKind]] = {
    "linear": (nn.Linear(4, 6), LINEAR),
    "one dimension": (nn.Conv1d(4, 6, 3), CONVOLUTION),
    "three dimensions": (nn.Conv3d(4, 6, 3), CONVOLUTION),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), CONVOLUTION),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), TRANSPOSED),
    "BatchNorm": (nn.BatchNorm2d(4), BATCH_NORM),
    "synchronised BatchNorm": (nn.SyncBatchNorm(4), BATCH_NORM),
    "InstanceNorm": (nn.InstanceNorm1d(4), INSTANCE_NORM),
    "GroupNorm": (nn.GroupNorm(2, 4), GROUP_NORM),
    "LayerNorm": (nn.LayerNorm(4), LAYER_NORM),
    "PReLU": (nn.PReLU(4), PRELU),
    "RMSNorm": (nn.RMSNorm(4), RMS_NORM),
    "Embedding": (nn.Embedding(9, 4), EMBEDDING),
}


@pytest.mark.parametrize("name", LAYERS)
def test_modules_are_known_by_their_class(name: str) -> None:
    module, kind = LAYERS[name]
    assert kind_of(module) is kind
    assert kind_of(nn.ReLU()) is None


def test_every_kind_is_tested() -> None:
    assert {id(kind) for _, kind in LAYERS.values()} == {id(kind) for kind in KINDS}


MATRICES = {
    "linear": (nn.Linear(4, 6), (3, 5, 4)),
    "convolution": (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), (3, 4, 7, 7)),
    "one dimension": (nn.ConvTranspose1d(4, 6, 3), (3, 4, 7)),
}


@pytest.mark.parametrize("name", MATRICES)
@torch.no_grad()
def test_inputs_and_outputs_lie_where_their_kind_says(name: str) -> None:
    """A change of one output's weights, or of one input, shows where it should."""
    torch.manual_seed(0)
    layer, shape = MATRICES[name]
    kind, weight = kind_of(layer), layer.get_parameter("weight")
    assert isinstance(kind, MatrixKind)
    x = torch.randn(shape)
    before = layer(x)
    channels = kind.channel_dimension(before, weight)
    assert before.shape[channels] == kind.outputs(weight, kind.groups(layer)) == 6
    assert kind.channel_dimension(x[0], weight) == channels - 1  # without a batch
    assert torch.equal(kind.rows(layer, x)[:, 0], x.select(channels, 0).flatten())

    kept = torch.tensor([0])
    outputs = kind.kept_outputs(layer, {kind.output_dimension: kept})
    assert outputs is not None and kind.kept_outputs(layer, {}) is None
    change = torch.zeros_like(weight).index_fill_(kind.output_dimension, kept, 1.0)
    weight += change
    changed = (layer(x) != before).movedim(channels, 0).flatten(1).any(1)
    weight -= change
    assert changed.nonzero().flatten().tolist() == outputs.tolist()

    nothing = torch.zeros_like(weight).index_fill_(kind.input_dimension, kept, 1.0)
    unread = x.clone().index_fill_(channels, kept, 9.0)
    weight *= 1 - nothing
    assert torch.allclose(layer(unread), layer(x))


@torch.no_grad()
def test_columns_are_what_reads_each_input() -> None:
    weight = torch.randn(6, 4, 3, 3)  # a convolution with two groups of four inputs
    columns = input_columns(weight, 1, 2, 4)
    assert columns.shape == (2, 3, 9, 4)
    assert torch.equal(columns[1, 2, :, 3], weight[5, 3].flatten())
    assert torch.equal(from_input_columns(columns, weight, 1), weight)
    flat = torch.randn(5, 12)  # a linear layer that reads four channels at three positions
    assert torch.equal(input_columns(flat, 1, 1, 4)[0, 2, 1], flat[2, 4:8])


def test_a_layer_knows_what_goes_with_it() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)
    )
    graph = trace(model.eval(), torch.zeros(1, 3, 1, 1), check=False)
    first, last = graph.layers.values()
    assert (first.path, first.weight, first.bias) == ("0", "0.weight", None)
    assert (first.batch_norm, first.running_mean) == ("1", "1.running_mean")
    assert (last.bias, last.batch_norm, last.running_mean) == ("3.bias", None, None)
    assert first.kind is CONVOLUTION and last.kind is LINEAR
    assert first.absorbs_mean and last.absorbs_mean
    assert list(batch_norms(model)) == ["1"]


def test_shared_weights_go_by_their_first_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    layers = layers_of(model, {})
    assert [layer.weight for layer in layers.values()] == ["0.weight", "0.weight"]
    assert list(layers_of(nn.Linear(2, 2), {})) == [""]


def test_a_batch_norm_that_is_a_function_takes_up_means_but_is_no_module() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, bias=False)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("variance", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(self.conv(x), self.mean, self.variance)

    layer = trace(Norm().eval(), torch.zeros(1, 3, 2, 2)).layers["conv"]
    assert (layer.batch_norm, layer.running_mean) == (None, "mean")


class Embedding(LayerKind):
    """A kind that the library is made not to have."""

    types = (nn.Embedding,)
    operators = ("embedding",)
    sizes = {"embedding_dim": 1}  # noqa: RUF012


def embedding(labels: Walk, call: Call) -> Any:
    outputs = labels.classes.fresh(call.value.shape[-1])
    labels.use(call["weight"], 1, outputs, OUTPUT)
    return spread(outputs, call.shape, call.value.dim() - 1)


def test_a_new_kind_is_an_entry_and_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5)).eval()
    words = torch.arange(9).view(3, 3)
    others = tuple(kind for kind in KINDS if kind is not EMBEDDING)
    monkeypatch.setattr(layer_kinds, "KINDS", others)
    monkeypatch.delitem(walk.RULES, Embedding.operators[0])
    assert not trace(model, words).axes
    monkeypatch.setattr(layer_kinds, "KINDS", (*others, Embedding()))
    monkeypatch.setitem(walk.RULES, Embedding.operators[0], embedding)
    graph = trace(model, words)
    assert [(axis.name, axis.channels) for axis in graph.axes] == [("0", 6)]
    small = prune(graph, PruningPlan.build(graph, [[0, 2, 3]]), calibration=[words])
    assert small[0].embedding_dim == small[1].in_features == 3


def test_sizes_follow_what_a_layer_has() -> None:
    """A module without a weight goes by its running mean."""
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.PReLU(4))
    kept = {1: torch.tensor([1, 2])}
    small = remove(model, {"0.running_mean": {0: kept[1]}, "0.running_var": {0: kept[1]}})
    assert small[0].num_features == 2 and small[1].num_parameters == 4
