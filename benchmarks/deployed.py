"""How fast pruned networks are where they run: default plans, and plans under a latency.

python benchmarks/deployed.py run --networks resnet18 timm:regnetx_002
python benchmarks/deployed.py report

Weights are random: times do not depend on them. For each network and backend: the dense network,
plans at half of the MACs with any widths (`round_to=1`) and with the default ones, torch-pruning at
half of the MACs with `round_to=8`, and a plan at half of the *latency*, after the times of earlier
ones corrected the table. All are timed in turns in one process, by one thread, on one image; what
counts is the fastest run in CPU time, which other programs disturb least. Prediction errors are
those of the table before it was corrected, on 30 plans that it had not seen: 20 to 95 % of the
MACs.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from readme import write_between
from records import Records, environment
from torch import Tensor, nn

import mdcp_fast
from mdcp_fast.deployment.backends import backend
from mdcp_fast.deployment.timing import measure_in_turns

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "deployed.json"
KEY = ("network", "backend")
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "openvino", "torch-pruning")
BACKENDS = ("onnxruntime", "openvino")
TORCHVISION = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
    "efficientnet_b0", "mnasnet1_0", "shufflenet_v2_x1_0", "regnet_y_400mf", "densenet121",
    "vgg11_bn", "googlenet",
)  # fmt: skip
TIMM = (
    "timm:resnet26d", "timm:regnetx_002", "timm:mobilenetv3_large_100", "timm:efficientnet_lite0",
    "timm:repvgg_a0", "timm:resnext26ts", "timm:convnext_atto", "timm:ghostnet_100",
    "timm:darknet53", "timm:hardcorenas_a",
)  # fmt: skip
SIZE = 224
HALF = 0.5
CORRECTIONS = 3
UNSEEN = 30  # plans whose times are predicted
LEAST, MOST = 0.2, 0.95  # their shares of the MACs
SEARCHED = "latency"
MARKS = ("<!-- deployed: written by benchmarks/deployed.py report -->", "<!-- end of deployed -->")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, own = name.rpartition(":")
    if library == "timm":
        import timm

        return timm.create_model(own, pretrained=False).eval()
    import torchvision

    options = {"aux_logits": False, "init_weights": True} if own == "googlenet" else {}
    return torchvision.models.get_model(own, weights=None, **options).eval()


def rival(model: nn.Module, x: Tensor, dense: int) -> nn.Module | str:
    """torch-pruning's L2 magnitude, uniform, multiples of 8, at half of the MACs; or why not."""
    import copy

    import torch_pruning

    low, high, found = 0.0, 1.0, None
    for _ in range(8):
        share = (low + high) / 2
        small = copy.deepcopy(model)
        last = [one for one in small.modules() if isinstance(one, nn.Linear)][-1:]
        try:
            torch_pruning.pruner.MagnitudePruner(
                small, x, importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=share, ignored_layers=last, round_to=8,
            ).step()  # fmt: skip
            macs = mdcp_fast.count_macs(small, x)
        except Exception as error:  # whatever it raises on this network
            return f"{type(error).__name__}: {str(error).splitlines()[:1]}"[:120]
        if macs <= HALF * dense:
            found, high = small, share
        else:
            low = share
    return "never reached half of the MACs" if found is None else found


def prediction_errors(
    graph: mdcp_fast.ChannelGraph, table: mdcp_fast.LatencyTable, seconds: float
) -> list[float]:
    """By how much a table is off for plans that it has not seen, as shares of their times."""
    shares = [LEAST + (MOST - LEAST) * step / (UNSEEN - 1) for step in range(UNSEEN)]
    plans = mdcp_fast.search(graph, macs=shares)
    dense, *times = mdcp_fast.time_plans(graph, table, plans, seconds=seconds)
    pace = table.dense_milliseconds / dense.milliseconds
    return [
        round(table.predict(graph, plan) / (pace * one.milliseconds) - 1, 4)
        for plan, one in zip(plans, times, strict=True)
    ]


def measure(name: str, where: str, seconds: float, only_defaults: bool) -> dict[str, Any]:
    model, x = network(name), torch.randn(1, 3, SIZE, SIZE)
    graph = mdcp_fast.trace(model, x)
    plans = {
        "any widths": mdcp_fast.search(graph, macs=HALF, round_to=1),
        "default": mdcp_fast.search(graph, macs=HALF),
    }
    result: dict[str, Any] = {}
    if not only_defaults:
        start = time.process_time()
        table = mdcp_fast.measure_latency(graph, backend=where, seconds=seconds)
        result["table_seconds"] = round(time.process_time() - start, 1)
        result["errors"] = prediction_errors(graph, table, seconds)
        for _ in range(CORRECTIONS):
            found = mdcp_fast.search(graph, latency=HALF, latency_table=table)
            table = mdcp_fast.calibrate_latency(graph, table, found, seconds=seconds / 2)
        plans[SEARCHED] = mdcp_fast.search(graph, latency=HALF, latency_table=table)
    models = {"dense": model}
    models |= {key: mdcp_fast.prune(graph, plan, check=False) for key, plan in plans.items()}
    other = rival(model, x, graph.macs)
    if isinstance(other, str):
        result["rival"] = other
    else:
        models["torch-pruning"] = other
    calls = [backend(where).prepare(one, (x,), threads=1) for one in models.values()]
    timings = measure_in_turns(calls, seconds=seconds, rounds=15, cpu=True)
    for key, timing in zip(models, timings, strict=True):
        result[key] = {
            "milliseconds": round(timing.fastest, 4),
            "wall_median": round(timing.median, 4),
            "macs": round(mdcp_fast.count_macs(models[key], x) / graph.macs, 4),
        }
    return result


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    records = Records(arguments.results, KEY, lambda: environment(PACKAGES))
    for name in arguments.networks or (*TORCHVISION, *TIMM):
        for where in arguments.backends:
            if (name, where) in records:
                continue
            try:
                measured = measure(name, where, arguments.seconds, arguments.only_defaults)
            except Exception as error:  # one network must not end the others
                print(f"{name}, {where}: {type(error).__name__}: {error}"[:300], flush=True)
                continue
            records.add((name, where), measured)
            print(name, where, measured, flush=True)


def report(arguments: argparse.Namespace) -> None:
    records = Records(arguments.results, KEY)
    lines = [
        "# Deployed: time on one CPU thread, one image of 224 x 224",
        "",
        *" ".join((__doc__ or "").split("\n\n")[2].split()).splitlines(),
        "",
        "Measured with:",
        *("- " + ", ".join(f"{k} {v}" for k, v in one.items()) for one in records.environments),
        "",
    ]
    tables = []
    for where in dict.fromkeys(one["backend"] for one in records.records):
        tables += [
            f"{where}:",
            "",
            "| network | dense, ms | any widths | default | torch-pruning, round_to=8 | "
            "half of the latency | its MACs | prediction errors, median, 90 % |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for one in records.records:
            if one["backend"] != where:
                continue
            dense = one["dense"]["milliseconds"]
            speeds = [
                f"{dense / one[key]['milliseconds']:.2f}x" if key in one else "fails"
                for key in ("any widths", "default", "torch-pruning")
            ]
            searched = "| | "
            if SEARCHED in one:
                share = one[SEARCHED]["milliseconds"] / dense
                searched = f"{share:.1%} | {one[SEARCHED]['macs']:.1%} | "
            if "errors" in one:
                errors = sorted(map(abs, one["errors"]))
                median, most = statistics.median(errors), errors[int(0.9 * (len(errors) - 1))]
                searched += f"{median:.1%}, {most:.1%}"
            tables.append(f"| {one['network']} | {dense:.2f} | {' | '.join(speeds)} | {searched} |")
        tables.append("")
    arguments.results.with_suffix(".md").write_text("\n".join(lines + tables))
    if arguments.results == RESULTS:
        write_between(ROOT / "README.md", MARKS, "\n".join(tables).strip())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--networks", nargs="+", help="torchvision's names, or timm:NAME")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument(
        "--only-defaults", action="store_true", help="no plans under a latency, which take minutes"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(arguments) if arguments.command == "run" else report(arguments)


if __name__ == "__main__":
    main()
