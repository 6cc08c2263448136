"""The command line: `minires run`, `minires evaluate`, `minires improve`, `minires info`."""

import argparse
import importlib
import json
import os
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path

import minires

# What the user can mend is told in one line; anything else is our mistake and shows its trace.
MENDABLE = (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError, ImportError)

# Commands that live elsewhere: each module has `add_parser(subparsers)`.
COMMANDS = (
    "minires.commands.bench",
    "minires.study.sweep",
    "minires.study.report",
    "minires.commands.evaluate",
    "minires.commands.improve",
)


def main(arguments=None):
    """Run one command; the exit code is 0, 2 for bad input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="minires", description="Better networks by weight resampling (arXiv:1807.00847)."
    )
    parser.add_argument("--version", action="version", version=f"minires {minires.__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(subparsers)
    _add_info(subparsers)
    for name in COMMANDS:
        importlib.import_module(name).add_parser(subparsers)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        kept = "; what is finished is kept, `run --resume` goes on with it"
        print(f"\nstopped{kept if options.run is _run else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `minires run | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MENDABLE as error:
        print(f"minires: {_told(error)}", file=sys.stderr)
        return 2


def _told(error):
    """An error in one line, with the remedy where its own words have none."""
    if type(error).__name__ == "OutOfMemoryError":  # CuPy's
        return (
            f"the GPU's memory is full ({error}): lower --batch, --members or --replicas, end "
            "other programs that use the card, or run on the CPU"
        )
    return error


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults, where there are any to say."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:  # 0 is said
            return action.help
        return super()._get_help_string(action)


def _add_run(subparsers):
    parser = subparsers.add_parser(
        "run",
        help="train, fine-tune with moments, compare",
        description="Train a network, fine-tune it while keeping the running mean and variance of "
        "its weights, then compare the fine-tuned network with the mean model and with ensembles.",
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "--data",
        choices=("glyphs", "mnist"),
        default="glyphs",
        help="digits made on the spot, or MNIST",
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
        help="what multiplies the channels of MobileNet and Inception (0.25)",
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
    parser.add_argument("--epochs", type=int, default=2, help="of training")
    parser.add_argument("--updates", type=int, default=500, help="of fine-tuning")
    parser.add_argument("--batch", type=int, default=128, help="images in a mini-batch")
    parser.add_argument(
        "--dropout", type=float, help="share of units dropped (LeNet 0.5, others 0.2)"
    )
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd", help="of training")
    parser.add_argument(
        "--finetune-optimizer", choices=("sgd", "adam"), default="sgd", help="of fine-tuning"
    )
    parser.add_argument("--members", type=int, default=10, help="networks in the ensemble")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many repeats")
    parser.add_argument("--train", type=int, help="training images (glyphs 30,000, MNIST all)")
    parser.add_argument("--test", type=int, help="test images (glyphs 5,000, MNIST all)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where to compute")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")
    parser.add_argument("--out", type=Path, help="folder for results (runs/DATA-NETWORK-TIME)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=_run)


def _run(options):
    from minires import arrays
    from minires import data as data_tools
    from minires.arrays.files import load_arrays
    from minires.study import experiment
    from minires.study import experiment_figure as figures

    if options.threads is not None:
        arrays.set_threads(options.threads)
    names = [field.name for field in fields(experiment.Config)]
    config = experiment.Config(**{name: getattr(options, name) for name in names})
    arrays.module_for(config.device)  # before anything is loaded: is there a GPU?
    out = options.out or _own_folder(config, options.resume)
    started = time.monotonic()

    def say(text):
        if not options.quiet:
            print(text, file=sys.stderr)

    sizes = {"train": config.train, "test": config.test}
    dataset = data_tools.load(
        config.data,
        data_dir=options.data_dir,
        progress=not options.quiet,
        threads=arrays.get_threads(),
        **sizes,
    )
    if config.batch > len(dataset.train_images):  # before a folder is made that then stays
        raise ValueError(
            f"--batch is {config.batch}, but there are {len(dataset.train_images)} training "
            "images: give a smaller --batch or a larger --train"
        )
    model = config.model(dataset.train_images.shape[1:])
    folder = experiment.Folder(out, config, options.resume, experiment.fingerprint(dataset))
    experiment.check_space(folder, model, config)
    say(
        f"{dataset.name}: {len(dataset.train_images):,} training, "
        f"{len(dataset.test_images):,} test images; {config.network}: {model.size:,} weights; "
        f"{_place(config.device)}; results go to {out}"
    )
    with warnings.catch_warnings():
        # Weights that grow without bound overflow on their way; training says so in one line.
        warnings.simplefilter("ignore", RuntimeWarning)
        results = experiment.run(config, dataset, folder, options.quiet)
    kept = load_arrays(folder.file(f"seed_{config.seed}_finetuned.npz"), "watched", "history")
    watched = [_name_of(model, index) for index in kept["watched"]]
    figures.draw_experiment(results, out / "figure.png", kept["history"], watched)
    print(experiment.table(results["records"]))
    say(f"{time.monotonic() - started:.0f} s; results, weights and figure.png are in {out}")
    return 0


def _place(device):
    from minires import arrays

    if device == "gpu":
        return arrays.describe_gpus()[0]
    return f"{arrays.get_threads()} threads"


def _own_folder(config, resume):
    """Where results go without --out: a new folder, or the newest one to go on with."""
    runs, name = Path("runs"), f"{config.data}-{config.network}-"
    if not resume:
        return runs / (name + time.strftime("%Y%m%d-%H%M%S"))
    earlier = sorted(runs.glob(name + "*"))
    if not earlier:
        raise ValueError(f"--resume: there is no {runs / name}… to go on with: name it with --out")
    return earlier[-1]


def _name_of(model, index):
    """ "conv2d_1.weight[3, 2, 0, 17]" for an index into θ."""
    import numpy as np

    for entry in model.layout.weights:
        if entry.start <= index < entry.start + entry.size:
            place = np.unravel_index(index - entry.start, entry.shape)
            return f"{entry.name}[{', '.join(str(int(i)) for i in place)}]"
    raise IndexError(f"θ has {model.size} weights, there is no number {index}")


def _add_info(subparsers):
    parser = subparsers.add_parser("info", help="versions, threads and GPUs at hand")
    parser.set_defaults(run=_info)


def _info(options):
    import platform

    import numpy as np

    from minires import arrays

    facts = {
        "minires": minires.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": arrays.get_threads(),
        "blas": arrays.describe_blas(),
        "gpus": arrays.describe_gpus(),
    }
    if isinstance(facts["gpus"], list):
        facts["cuda"] = arrays.describe_cuda()
    print(json.dumps(facts, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
