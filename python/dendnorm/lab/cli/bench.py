"""``dendnorm bench``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .options import add_output, add_threads, set_threads

__all__ = ["add"]

OUT = "dendnorm-bench"


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time a training step against dense and sparse peers on this machine",
        description="Times forward and backward of dense, masked, torch.sparse, SparseProp, SparseLab and dendnorm"
        " layers in turns and alone, and writes bench.json, bench.md and bench.png. Ctrl-C keeps what is done.",
    )
    parser.add_argument(
        "--conv",
        action="store_true",
        help="time convolutions instead, on the CPU, against dense ones in both orders of memory, masked ones and"
        " SparseProp; a shape is then CHANNELS,FILTERS,KERNEL,STRIDE,SIZE,BATCH,DENSITY (default: seven of ResNet-18)",
    )
    parser.add_argument(
        "--shape",
        action="extend",
        nargs="+",
        dest="shapes",
        metavar="IN,OUT,BATCH,DENSITY",
        help="layers to time, as 784,1000,128,0.04 (default: eleven shapes)",
    )
    parser.add_argument(
        "--contender",
        action="extend",
        nargs="+",
        dest="contenders",
        metavar="NAME",
        help="who takes part, as 'dendnorm, l0' (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns for every shape (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="of weights and activations (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--no-sweeps", action="store_true", help="the table of shapes alone")
    parser.add_argument("--roofline", metavar="FILE", help="output of benchmarks/roofline, for the share of the floor")
    add_threads(parser)
    add_output(parser, OUT, quiet="do not say what is being measured")
    parser.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from .. import bench
    from ..report import free_folder

    if arguments.conv and (arguments.roofline or arguments.device != "cpu"):
        raise ValueError("--conv must be without --roofline and --device: convolutions are timed on the CPU")
    set_threads(arguments.threads)
    out = arguments.out or free_folder(OUT, bench.RESULTS)
    contenders = arguments.contenders
    given: dict[str, Any] = {
        "sweeps": not arguments.no_sweeps, "rounds": arguments.rounds, "dtype": getattr(torch, arguments.dtype),
        "progress": not arguments.quiet, "overwrite": arguments.overwrite,
    }  # fmt: skip
    if arguments.conv:
        convolutions = [bench.conv.ConvShape.parse(text) for text in arguments.shapes or ()] or bench.conv.SHAPES
        results = bench.run_conv(convolutions, out, contenders=contenders or tuple(bench.conv.CONTENDERS), **given)
        print(bench.conv_table(results))
    else:
        results = bench.run(
            [bench.Shape.parse(text) for text in arguments.shapes] if arguments.shapes else None,
            out,
            contenders=contenders or tuple(bench.CONTENDERS),
            roofline=bench.Roofline.read(arguments.roofline) if arguments.roofline else None,
            device=arguments.device,
            **given,
        )
        print(bench.table(results))
    print(f"Written to {out}")
    if results["interrupted"]:
        print("Interrupted: what was measured was kept.", file=sys.stderr)
        return 130
    return 0
