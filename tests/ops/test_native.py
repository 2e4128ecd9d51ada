"""The native core's structs are made by the names of their members, and by nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from emulation.build import EmulatedCore

from mdcp_fast.ops._native import native

CSRC = Path(__file__).parents[2] / "csrc"
POINTS, OFFSETS = torch.rand(5, 2), torch.tensor([0, 5])
LINKAGE = torch.empty(4, 4, dtype=torch.float64)
WARD = {
    "points": POINTS.data_ptr(),
    "offsets": OFFSETS.data_ptr(),
    "problems": 1,
    "dimensions": 2,
}


def members_of(struct: str) -> list[str]:
    """Names of a struct's members in the headers, in their order."""
    (text,) = (
        match.group(1)
        for folder in ("ops", "numerics")
        for path in sorted((CSRC / folder).glob("*.h"))
        if (match := re.search(rf"^struct {struct} {{\n(.*?)^}};", path.read_text(), re.M | re.S))
    )
    code = [line.split("//")[0].strip() for line in text.splitlines() if " enum " not in line]
    names = []
    for line in filter(None, code):
        _, declared = line.removesuffix(";").removeprefix("const ").split(maxsplit=1)
        names += [name.strip(" *") for name in declared.split(",")]
    return names


STRUCTS = (
    "ChannelStatisticsProblem",
    "ChannelStatisticsResult",
    "CrowdingDistanceProblem",
    "CrowdingDistanceResult",
    "Cost",
    "EvaluatePopulationProblem",
    "EvaluatePopulationResult",
    "EvolutionState",
    "KMeansProblem",
    "KMeansResult",
    "WardProblem",
    "WardResult",
)


def some_members(struct: str) -> dict[str, object]:
    """A value of the right kind for every member: nothing looks at the addresses."""
    values: dict[str, object] = dict.fromkeys(members_of(struct), 1)
    if struct == "KMeansProblem":
        values["init"] = native.KMeansInit.ward
    if struct == "EvaluatePopulationProblem":
        values["cost"] = native.Cost(**some_members("Cost"))
    return values


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_member_has_its_name(struct: str) -> None:
    """All members of the header must be given: one that was left out would be a null pointer."""
    make, members = getattr(native, struct), some_members(struct)
    make(**members)
    make(**dict(reversed(members.items())))
    for name in members:
        others = {other: value for other, value in members.items() if other != name}
        with pytest.raises(TypeError, match=f"^{struct}: missing {name}$"):
            make(**others)
    with pytest.raises(TypeError, match=f"^{struct}: unknown pionts$"):
        make(**members, pionts=1)
    with pytest.raises(TypeError):
        make(*members.values())


def test_a_member_of_another_type_is_named() -> None:
    for wrong in ({"points": POINTS}, {"problems": 1.5}, {"dimensions": 2**40}, {"points": -1}):
        (name,) = wrong
        with pytest.raises(TypeError, match=f"^WardProblem: {name}: got "):
            native.WardProblem(**{**WARD, **wrong})


def test_an_op_takes_no_struct_for_another() -> None:
    problem, execution = native.WardProblem(**WARD), native.Execution(threads=1, simd=0)
    result = native.WardResult(linkage=LINKAGE.data_ptr())
    native.ward(problem, result, execution)
    with pytest.raises(TypeError):
        native.ward(result, problem, execution)
    with pytest.raises(TypeError):
        native.crowding_distance(problem, result, execution)


def test_the_evolution_takes_its_arguments_by_name() -> None:
    seeds = torch.zeros(1, dtype=torch.int64)
    generators = torch.empty(1, native.generator_words, dtype=torch.int32)
    named = {"seeds": seeds.data_ptr(), "runs": 1, "generators": generators.data_ptr()}
    native.random_seed(**named)
    for wrong in ({"seed": 0, "runs": 1, "generators": 0}, {"seeds": 0, "runs": 1}):
        with pytest.raises(TypeError):
            native.random_seed(**wrong)
    with pytest.raises(TypeError):
        native.random_seed(*named.values())


def test_the_emulated_core_is_called_in_the_same_way(emulated: EmulatedCore) -> None:
    problem = emulated.WardProblem(**WARD)
    result = emulated.WardResult(linkage=LINKAGE.data_ptr())
    with pytest.raises(TypeError, match="^CudaExecution: missing tables$"):
        emulated.CudaExecution(workspace=0, device=0, stream=0)
    execution = emulated.CudaExecution(tables=0, workspace=0, device=0, stream=0)
    with pytest.raises(TypeError):
        emulated.ward_cuda(result, problem, execution)
    with pytest.raises(TypeError):
        emulated.ward_cuda(problem, result, emulated.Execution(threads=1, simd=0))
