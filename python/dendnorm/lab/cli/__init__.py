"""The command ``dendnorm``: each subcommand adds its own parser and names the function that runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]


def _add_run_options(parser: argparse.ArgumentParser, out: str, quiet: str) -> None:
    parser.add_argument("--threads", type=int, help="CPU threads; left out: PyTorch's own choice")
    parser.add_argument("--out", default=out, metavar="DIR", help="where the results go")
    parser.add_argument("--quiet", action="store_true", help=quiet)


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="train the same sparse network with several norms, side by side",
        description="Trains the same sparse network with several norms over several trials, with rewiring after every"
        " epoch, and writes results.json, table.md and curves.png. Ctrl-C keeps what is done.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        choices=("digits", "mnist", "fashion-mnist", "cifar10", "coil100"),
        help="data set; left out: what is found in --root, or digits without it",
    )
    parser.add_argument("--root", metavar="DIR", help="folder of the data set's files, or the folder that holds it")
    parser.add_argument("--hidden", type=int, nargs="+", default=[100], metavar="M", help="sizes of the hidden layers")
    parser.add_argument(
        "--norm",
        action="append",
        dest="norms",
        help="none, l0, l0-variable, lp:2, lp-variable:2, weight_norm or joint; repeat to compare (default: none, l0)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--trials", type=int, default=3, help="networks for each norm")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training data")
    parser.add_argument("--batch", type=int, default=10, help="examples in a minibatch")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate of plain SGD")
    parser.add_argument(
        "--activation", choices=("sigmoid", "relu", "tanh", "srelu"), default="sigmoid", help="hidden units"
    )
    parser.add_argument(
        "--convolution", type=int, default=0, help="5 x 5 filters before the sparse layers, and pooling"
    )
    parser.add_argument("--momentum", type=float, default=0.0, help="of SGD")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of SGD, for weights")
    parser.add_argument("--dropout", type=float, default=0.0, help="share of hidden outputs set to 0 in training")
    parser.add_argument("--schedule", choices=("constant", "cosine"), default="constant", help="of the learning rate")
    parser.add_argument(
        "--matched",
        action="store_true",
        help="starts matched to the number n of inputs: biases 0, output weights N(0, 1/n), sparse weights act as"
        " N(0, 2/n)",
    )
    parser.add_argument("--epsilon", type=float, default=0.2, help="share of connections that exist")
    parser.add_argument("--zeta", type=float, default=0.15, help="share of connections rewired after each epoch")
    parser.add_argument("--zeta-schedule", choices=("constant", "cosine"), default="constant", help="of that share")
    parser.add_argument("--s", type=float, default=25.0, help="excitability at the start")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first trial; the next ones count up")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    _add_run_options(parser, out="dendnorm-results", quiet="no progress bar")
    parser.set_defaults(function=_train)


_TRAINING_OPTIONS = (
    *("trials", "epochs", "batch", "lr", "activation", "epsilon", "zeta", "s", "seed", "device", "convolution"),
    *("momentum", "weight_decay", "dropout", "schedule", "zeta_schedule", "matched"),
)


def _train(arguments: argparse.Namespace) -> int:
    from . import data, training

    _set_threads(arguments.threads)
    name = arguments.data or (data.guess(arguments.root) if arguments.root else "digits")
    settings = training.Settings(
        data=name,
        root=arguments.root,
        hidden=tuple(arguments.hidden),
        norms=tuple(getattr(arguments, "norms", ("none", "l0"))),
        **{key: getattr(arguments, key) for key in _TRAINING_OPTIONS},
    )
    results = training.run(settings, arguments.out, progress=not arguments.quiet)
    summary = training.summarise(results)
    print(training.table(results, summary))
    files = "results.json, table.md and curves.png" if summary else "results.json and table.md (no epoch was finished)"
    print(f"Written to {arguments.out}: {files}")
    if results["interrupted"]:
        print("Interrupted: the finished epochs were kept.", file=sys.stderr)
        return 130
    return 1 if any("failed" in record for record in results["runs"]) else 0


def _add_paper(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "paper",
        help="reproduce a figure or the table of the paper",
        description="Trains what a figure needs, trials side by side on all cores, and writes NAME.json, NAME.md and"
        " NAME.png. Finished trials are kept in --out and are not trained again: a run that was stopped goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what --list names, or all")
    parser.add_argument("--list", action="store_true", help="name what there is")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the folders of the data sets")
    parser.add_argument(
        "--data", action="append", metavar="NAME", help="only the networks for this data set; repeat for more"
    )
    parser.add_argument("--trials", type=int, help="networks for each norm; left out: as the figure says")
    parser.add_argument("--epochs", type=int, help="passes over the training data; left out: as the figure says")
    parser.add_argument("--workers", type=int, help="processes; left out: one for each core")
    parser.add_argument("--quick", action="store_true", help="one trial and one or two epochs, to see that it works")
    parser.add_argument("--out", default="dendnorm-paper", metavar="DIR", help="where trials and results go")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(function=_paper)


def _paper(arguments: argparse.Namespace) -> int:
    from . import paper

    if arguments.list:
        for name, experiment in paper.EXPERIMENTS.items():
            print(f"{name:10}{experiment.title}")
        return 0
    if not arguments.names:
        raise ValueError("a NAME is needed, or --list")
    names = list(paper.EXPERIMENTS) if arguments.names == ["all"] else arguments.names
    for name in names:
        results = paper.run(
            name,
            arguments.out,
            progress=not arguments.quiet,
            **{key: getattr(arguments, key) for key in ("root", "data", "trials", "epochs", "quick", "workers")},
        )
        print(paper.table(results))
        print(f"Written to {arguments.out}: {name}.json, {name}.md and {name}.png")
    return 0


def _add_bench(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bench",
        help="time a training step against dense and sparse peers on this machine",
        description="Times forward and backward of dense, masked, torch.sparse, SparseProp and dendnorm layers in"
        " turns, and writes bench.json, bench.md and bench.png. Ctrl-C keeps what is done.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--shape",
        action="append",
        dest="shapes",
        metavar="IN,OUT,BATCH,DENSITY",
        help="a layer to time, as 784,1000,128,0.04; repeat for more (default: eleven shapes)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--contender",
        action="append",
        dest="contenders",
        metavar="NAME",
        help="who takes part; repeat for more (default: all)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns for every shape")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of weights and activations")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-sweeps", action="store_true", help="the table of shapes alone")
    parser.add_argument("--roofline", metavar="FILE", help="output of benchmarks/roofline, for the share of the floor")
    _add_run_options(parser, out="dendnorm-bench", quiet="do not say what is being measured")
    parser.set_defaults(function=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    import torch

    from . import bench

    _set_threads(arguments.threads)
    results = bench.run(
        [bench.Shape.parse(text) for text in arguments.shapes] if "shapes" in arguments else None,
        arguments.out,
        contenders=getattr(arguments, "contenders", tuple(bench.CONTENDERS)),
        sweeps=not arguments.no_sweeps,
        rounds=arguments.rounds,
        dtype=getattr(torch, arguments.dtype),
        roofline=bench.Roofline.read(arguments.roofline) if arguments.roofline else None,
        device=arguments.device,
        progress=not arguments.quiet,
    )
    print(bench.table(results))
    print(f"Written to {arguments.out}")
    return 130 if results["interrupted"] else 0


def _add_info(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("info", help="versions, how it was built, instruction sets, devices")
    parser.set_defaults(function=_info)


def _info(arguments: argparse.Namespace) -> int:
    from .. import info

    print(info.report())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status. Wrong input ends in one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="dendnorm", description="Sparse, dendritically normalised layers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_paper, _add_bench, _add_info):
        add(commands)
    arguments = parser.parse_args(argv)
    try:
        return arguments.function(arguments)
    except (ValueError, FileNotFoundError, ImportError, RuntimeError) as error:
        print(f"dendnorm {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
