"""The command line: mdcp-fast."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="mdcp-fast",
    help="Structured pruning of convolutional networks by multidimensional channel clustering.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"mdcp-fast {version('mdcp-fast')}")
        except PackageNotFoundError:
            typer.echo("mdcp-fast, run from a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    macs: Annotated[
        float, typer.Option(help="Share of the multiply-accumulates that may remain.")
    ] = 0.4,
    out: Annotated[Path, typer.Option(help="Folder for results, model and figures.")] = Path(
        "mdcp-fast-demo"
    ),
    model: Annotated[
        str,
        typer.Option(
            help="digits-resnet, resnet20, torchvision:NAME, timm:NAME or module:function."
        ),
    ] = "digits-resnet",
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist, fashion-mnist:FOLDER, folder:FOLDER or module:function."
        ),
    ] = "digits",
    epochs: Annotated[int, typer.Option(help="Epochs of training, and again of fine-tuning.")] = 15,
    seed: Annotated[int, typer.Option(help="Of weights, data order and search.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(help="State_dict of the trained network (.safetensors or .pt): no training."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, ...")] = "cpu",
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Train a network, prune it, compensate, fine-tune, and compare all four.

    Without options: a small residual network on scikit-learn's digits, in half a minute.
    """
    with _errors_in_one_line(traceback):
        from mdcp_fast.app.demo import run_demo

        run_demo(
            macs=macs,
            out=out,
            model=model,
            data=data,
            epochs=epochs,
            seed=seed,
            weights=weights,
            device=device,
        )


@app.command()
def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="torchvision:NAME, timm:NAME, module:function; FILE@NAME, where FILE is a pruned "
            "NAME that mdcp_fast.save wrote; or an .onnx or .xml file.",
        ),
    ],
    backends: Annotated[
        str | None,
        typer.Option(
            help="With commas between: torch, torch-compile, onnxruntime, openvino, tensorrt. "
            "Default: torch,onnxruntime,openvino, as far as they are installed."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples at a time.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads that compute; default: as torch has it.")
    ] = None,
    input: Annotated[str, typer.Option(help="One sample's shape.")] = "3x224x224",
    seconds: Annotated[float, typer.Option(help="How long to measure, all together.")] = 10.0,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Compare networks over backends on the CPU: time, size on disk, memory.

    All take turns in one process. Speed-ups are against the first network in the first backend.
    """
    with _errors_in_one_line(traceback):
        from mdcp_fast.app.bench import run_bench

        run_bench(
            models,
            backends=backends,
            batch=batch,
            threads=threads,
            input=input,
            seconds=seconds,
        )


@contextmanager
def _errors_in_one_line(traceback: bool) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if traceback:
            raise
        typer.echo(f"mdcp-fast: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """What the installed command runs."""
    sys.path.insert(0, os.getcwd())  # so that module:function finds what lies in this folder
    app()


if __name__ == "__main__":
    main()
