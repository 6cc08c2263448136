"""`minires run`: train a network, fine-tune it with moments, compare the methods."""

import argparse
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from minires.arrays.text import counted, say


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of every option that has one."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:  # the default 0 is shown
            return action.help
        return super()._get_help_string(action)


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "run",
        help="train, fine-tune with moments, compare",
        description="Train a network. Fine-tune it, and keep the running mean and variance of its "
        "weights. Then compare the fine-tuned network with the mean model and with ensembles.",
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "--data",
        choices=("glyphs", "mnist"),
        default="glyphs",
        help="digits made by the program, or MNIST",
    )
    parser.add_argument("--data-dir", type=Path, help="the folder of the MNIST files")
    parser.add_argument(
        "--network",
        default="lenet",
        help="lenet, lenet_classic, mobilenet_v1, mobilenet_v2, inception_v3",
    )
    parser.add_argument(
        "--width",
        type=float,
        help="factor on the number of channels of MobileNet and Inception (0.25)",
    )
    parser.add_argument(
        "--l1", type=float, help="learning rate of training (LeNet 0.2, others 0.05; Adam 0.001)"
    )
    parser.add_argument(
        "--l2",
        type=float,
        help="learning rate of fine-tuning (LeNet 0.25 on glyphs, 0.15 on MNIST, others 0.05; "
        "Adam 0.001)",
    )
    parser.add_argument("--momentum", type=float, help="of SGD (LeNet 0, others 0.9)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of training")
    parser.add_argument("--updates", type=int, default=500, help="updates of fine-tuning")
    parser.add_argument("--batch", type=int, default=128, help="images in a mini-batch")
    parser.add_argument(
        "--dropout", type=float, help="share of units dropped (LeNet 0.5, others 0.2)"
    )
    parser.add_argument(
        "--optimizer", choices=("sgd", "adam"), default="sgd", help="optimizer of training"
    )
    parser.add_argument(
        "--finetune-optimizer",
        choices=("sgd", "adam"),
        default="sgd",
        help="optimizer of fine-tuning",
    )
    parser.add_argument("--members", type=int, default=10, help="networks in the ensemble")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--seeds", type=int, default=1, help="how many seeds: repeats of everything"
    )
    parser.add_argument("--train", type=int, help="training images (glyphs 30,000, MNIST all)")
    parser.add_argument("--test", type=int, help="test images (glyphs 5,000, MNIST all)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where to compute")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")
    parser.add_argument("--out", type=Path, help="folder for results (runs/DATA-NETWORK-TIME)")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run, kept="; what is finished is kept, `run --resume` goes on with it")


def run(options: Any) -> int:
    """Carry out the command: check all settings, then train, then print the table.

    Raises   ValueError for options that do not fit each other
    """
    from minires import arrays
    from minires import data as data_tools
    from minires.arrays.results import locked_folder
    from minires.study import experiment
    from minires.study.experiment_figure import draw_folder

    if options.threads is not None:
        arrays.set_threads(options.threads)
    names = [field.name for field in fields(experiment.Config)]
    config = experiment.Config(**{name: getattr(options, name) for name in names})
    arrays.module_for(config.device)  # before anything is loaded: is there a GPU?
    out = options.out or _own_folder(config, options.resume)
    started = time.monotonic()
    dataset = data_tools.load(
        config.data,
        data_dir=options.data_dir,
        progress=not options.quiet,
        threads=arrays.get_threads(),
        train=config.train,
        test=config.test,
    )
    if config.batch > len(dataset.train_images):
        raise ValueError(
            f"--batch is {config.batch}, but there are {len(dataset.train_images)} training "
            "images: give a smaller --batch or a larger --train"
        )
    model = config.model(dataset.train_images.shape[1:])
    experiment.check_members(config, model, dataset)
    with locked_folder(out) as path:
        sha256 = experiment.fingerprint(dataset)
        folder = experiment.open_folder(path, config, model, options.resume, sha256)
        if not options.quiet:
            say(
                f"{dataset.name}: {len(dataset.train_images):,} training, "
                f"{len(dataset.test_images):,} test images; {config.network}: {model.size:,} "
                f"weights; {_place(config.device)}; results go to {out}"
            )
        with warnings.catch_warnings():
            # Weights that diverge overflow first. Training reports that in one line of its own.
            warnings.simplefilter("ignore", RuntimeWarning)
            results = experiment.run(config, dataset, folder, options.quiet)
        draw_folder(folder, results, model)
    print(experiment.table(results["records"]))
    if not options.quiet:
        seconds = time.monotonic() - started
        say(
            f"{seconds:.0f} s; results, weights and figure.png are in {out}",
            f"next: open the picture {out / 'figure.png'}; {_what_next(config)}; `minires lessons` "
            "explains each step",
        )
    return 0


def _what_next(config):
    if config.seeds < 3:
        return "give --seeds 3 to see how much is chance"
    return "`minires sweep` tries more learning rates and seeds"


def _place(device):
    from minires import arrays

    if device == "gpu":
        return arrays.describe_gpus()[0]
    return counted(arrays.get_threads(), "thread")


def _own_folder(config, resume):
    """The folder of results when --out names none: a new one, or with --resume the newest."""
    runs, name = Path("runs"), f"{config.data}-{config.network}-"
    if not resume:
        return runs / (name + time.strftime("%Y%m%d-%H%M%S"))
    earlier = sorted(runs.glob(name + "*"))
    if not earlier:
        raise ValueError(
            f"--resume: there is no folder {runs / name}…: name the one to go on with by --out"
        )
    return earlier[-1]
