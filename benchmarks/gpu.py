"""Everything that can be said of a GPU, in stages of two minutes at most, the most important first.

    python benchmarks/gpu.py                 on a machine with a CUDA GPU, PyTorch and CuPy
    python benchmarks/gpu.py lenet moments   one stage or more
    python benchmarks/gpu.py --again lenet   although it has been measured

Every row is printed, and written to gpu-benchmark.jsonl, when it is known: a lease that ends early
still tells something. The same command goes on with the first stage that is not finished. It runs
from a checkout that is not installed.

Stages: check (`minires info --check`), lenet, moments, products, mobilenet, inception, study,
parity. Parity runs the tests marked `gpu`, file by file. Times are medians, in float32 without TF32
on both sides. A target is what the project aims at. "study" times some cells of each kind and
multiplies by how many the paper's grid has; all of them, on MNIST, and what they say of its claims:

    minires sweep --profile full --device gpu --data-dir DIR --out runs/full
    minires report runs/full

Without a GPU it says so and ends with exit code 2.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # minires itself; torch_networks

from minires.study.grid import FULL, Profile  # noqa: E402

PARTS = ("check", "lenet", "moments", "products", "mobilenet", "inception", "study", "parity")
SECONDS = 120  # of a stage: what it has not begun by then is left out
RESULTS = "gpu-benchmark.jsonl"
MEMORY_CLOCK, BUS_WIDTH = 36, 37  # cudaDevAttrMemoryClockRate (kHz), …GlobalMemoryBusWidth (bits)


@dataclass(frozen=True)
class Sizes:
    """What is measured; smaller where only the program is tested."""

    batch: int = 128  # LeNet's
    replicas: int = 10
    channels: tuple = (32, 64)
    hidden: int = 1024
    large_batch: int = 64  # MobileNetV2's and Inception-V3's
    pixels: tuple = (224, 299)
    width: float = 1.0
    rounds: int = 20
    large_rounds: int = 5
    steps: int = 50  # of LeNet in a round
    copied: int = 1 << 28  # bytes
    products: tuple = (
        ("LeNet, first layer", 25, 32, 128 * 784),
        ("LeNet, second layer", 800, 64, 128 * 196),
        ("MobileNetV2, first layer", 27, 32, 64 * 12_544),
        ("MobileNetV2, 112² pixels", 16, 96, 64 * 12_544),
    )
    study: Profile = FULL
    together: int = 20  # of its cells
    torch_device: str = "cuda"


@dataclass
class Row:
    """A line of the table: a ratio to the reference, and what it should be."""

    what: str
    ours: str
    reference: str
    ratio: float | None = None
    target: float | None = None
    least: bool = False  # whether the ratio should be at least the target
    failed: bool = False  # whether it says that something is wrong

    def verdict(self):
        if self.ratio is None or self.target is None:
            return ""
        met = self.ratio >= self.target if self.least else self.ratio <= self.target
        return f"{'≥' if self.least else '≤'} {self.target:g} {'met' if met else 'MISSED'}"


def milliseconds(seconds):
    return f"{1e3 * seconds:.3f} ms"


# --- timing -------------------------------------------------------------------------------


def interleave(functions, rounds, synchronise):
    """Median seconds of each function, all of whose work has been done: {name: seconds}."""
    times = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            synchronise()
            start = time.perf_counter()
            function()
            synchronise()
            if number:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def wait_for_all(xp, sizes):
    """A function that waits until the card has nothing to do."""
    import torch

    def wait():
        xp.cuda.runtime.deviceSynchronize()
        if sizes.torch_device == "cuda":
            torch.cuda.synchronize()

    return wait


# --- LeNet --------------------------------------------------------------------------------


def lenet_problem(sizes, replicas):
    import minires
    from minires.training.timing import Problem

    model = minires.lenet(channels=sizes.channels, hidden=sizes.hidden)
    return Problem(model, sizes.batch, replicas, "gpu")


def torch_lenet(sizes):
    """PyTorch's network, an optimizer, and one batch."""
    import torch
    from torch import nn

    first, second = sizes.channels
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(49 * second, sizes.hidden), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(sizes.hidden, 10),
    ).to(sizes.torch_device)  # fmt: skip
    images = torch.randn(sizes.batch, 1, 28, 28, device=sizes.torch_device)
    labels = torch.randint(0, 10, (sizes.batch,), device=sizes.torch_device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    return network, optimizer, images, labels


def torch_step(network, optimizer, images, labels):
    """A function that does one training step with PyTorch."""
    import torch

    def step():
        optimizer.zero_grad(set_to_none=True)
        logits = network(images)
        logits = logits[0] if isinstance(logits, tuple) else logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def torch_graph(step):
    """The same step, recorded by PyTorch as a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def lenet(xp, sizes):
    """A step of LeNet: ours, recorded and not, one network and several, against PyTorch."""
    wait = wait_for_all(xp, sizes)
    step = torch_step(*torch_lenet(sizes))
    functions = {"eager": lambda: [step() for _ in range(sizes.steps)]}
    if sizes.torch_device == "cuda":
        replay = torch_graph(torch_step(*torch_lenet(sizes)))
        functions["graph"] = lambda: [replay() for _ in range(sizes.steps)]
    name = f"LeNet step, batch {sizes.batch}"
    single = lenet_problem(sizes, 1)
    played = single.step_seconds(sizes.rounds)
    times = interleave(functions, sizes.rounds, wait)
    eager = times["eager"] / sizes.steps
    against = f"PyTorch eager {milliseconds(eager)}"
    yield Row(f"{name}, recorded", milliseconds(played), against, played / eager, 0.5)
    if "graph" in times:
        graph = times["graph"] / sizes.steps
        text = f"PyTorch graph {milliseconds(graph)}"
        yield Row(f"{name}, recorded", milliseconds(played), text, played / graph)
    several = lenet_problem(sizes, sizes.replicas)
    each = several.step_seconds(sizes.rounds) / sizes.replicas
    label = f"{name}, {sizes.replicas} side by side, each"
    yield Row(label, milliseconds(each), against, each / eager, 0.2)
    # Without the gaps of `minires.arrays.aligned` every second network begins at 8 bytes, not 16.
    packed = lenet_problem(sizes, sizes.replicas)
    packed.theta = xp.ascontiguousarray(packed.theta)
    seconds = packed.step_seconds(sizes.rounds) / sizes.replicas
    text = f"with gaps {milliseconds(each)}"
    yield Row("  the same, no gaps between networks", milliseconds(seconds), text, seconds / each)
    plain = single.step_seconds(sizes.rounds, record=False)
    yield Row(f"{name}, not recorded", milliseconds(plain), against, plain / eager)
    kept = single.step_seconds(sizes.rounds, moments=True)
    yield Row(f"{name}, with moments", milliseconds(kept), against, kept / eager)
    before = os.environ.get("MINIRES_TF32")
    os.environ["MINIRES_TF32"] = "1"
    try:
        count = sizes.replicas
        for problem, networks, how in (
            (single, 1, ""), (several, count, ""), (packed, count, ", no gaps"),
        ):  # fmt: skip
            rough = problem.step_seconds(sizes.rounds) / networks
            label = f"{name}, {networks} at once{how}, with TF32"
            yield Row(label, milliseconds(rough), against, rough / eager)
    finally:
        os.environ["MINIRES_TF32"] = before or "0"
    for problem in (single, several):
        if problem.reason:
            yield Row("  not recorded", problem.reason, "")


# --- large networks -----------------------------------------------------------------------


def torch_seconds(xp, sizes, name, pixels):
    """What PyTorch takes for a training step and for inference of a batch, channels last."""
    import torch
    import torch_networks

    torch.manual_seed(0)
    if name == "mobilenet_v2":
        first = 1 if pixels <= 64 else 2
        settings = sizes.width, 3, 1000, first, (1e-5, 0.9, False)
        network = torch_networks.torch_mobilenet_v2(*settings)
    else:
        network = torch_networks.TorchInception(sizes.width, 3, 1000, "torch", auxiliary=False)
    network = network.to(sizes.torch_device, memory_format=torch.channels_last)
    images = torch.randn(sizes.large_batch, 3, pixels, pixels, device=sizes.torch_device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (sizes.large_batch,), device=sizes.torch_device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)

    def infer():
        with torch.inference_mode():
            network(images)

    wait = wait_for_all(xp, sizes)
    step = torch_step(network, optimizer, images, labels)
    found = interleave({"training": step}, sizes.large_rounds, wait)
    network.eval()
    return found | interleave({"inference": infer}, sizes.large_rounds, wait)


def large(xp, sizes, name):
    """Training and inference of a large network against PyTorch, one after the other."""
    import torch

    import minires
    from minires.training.timing import Problem

    pixels = sizes.pixels[name == "inception_v3"]
    shape, batch = (pixels, pixels, 3), sizes.large_batch
    make = {"mobilenet_v2": minires.mobilenet_v2, "inception_v3": minires.inception_v3}[name]
    theirs = torch_seconds(xp, sizes, name, pixels)
    if sizes.torch_device == "cuda":
        torch.cuda.empty_cache()
    model = make(width=sizes.width, input_shape=shape, variant="torch", dropout=0.2)
    problem = Problem(model, batch, device="gpu", images=batch)
    ours = {
        "training": problem.step_seconds(sizes.large_rounds),
        "inference": problem.predict_seconds(sizes.large_rounds),
    }
    for what, seconds in ours.items():
        against = f"PyTorch eager {milliseconds(theirs[what])}"
        label = f"{name}, {what}, batch {batch}"
        yield Row(label, milliseconds(seconds), against, seconds / theirs[what], 1.3)
    if problem.reason:
        yield Row(f"  {name}: not recorded", problem.reason, "")


# --- moments ------------------------------------------------------------------------------


def card_bandwidth(xp):
    """Bytes a second of the card's memory by its data sheet, or None if the driver is silent."""
    attribute = xp.cuda.runtime.deviceGetAttribute
    clock, width = attribute(MEMORY_CLOCK, 0), attribute(BUS_WIDTH, 0)
    return 2 * clock * 1e3 * width / 8 or None


def moments(xp, sizes):
    """The moments' update: its share of the memory's speed, and of a training step."""
    from minires.training.timing import MOMENTS_BYTES, copy_seconds

    problem = lenet_problem(sizes, sizes.replicas)
    seconds = problem.moments_seconds(sizes.rounds)
    speed = problem.theta.size * MOMENTS_BYTES / seconds
    copied, size = copy_seconds(xp, sizes.rounds, sizes.copied)
    copying = 2 * size / copied
    own = f"{speed / 1e9:.0f} GB/s"
    name = f"moments of {problem.theta.size:,} weights"
    against = f"copying {copying / 1e9:.0f} GB/s"
    yield Row(name, own, against, speed / copying)
    if (peak := card_bandwidth(xp)) is not None:
        yield Row(name, own, f"data sheet {peak / 1e9:.0f} GB/s", speed / peak, 0.7, True)
    step = problem.step_seconds(sizes.rounds)
    against = f"step {milliseconds(step)}"
    yield Row("moments in a step", milliseconds(seconds), against, seconds / step, 0.03)


# --- products -----------------------------------------------------------------------------


def products(xp, sizes):
    """Products with a long sum and a small result, of weight gradients: cut into parts, and not."""
    from minires.kernels import gpu
    from minires.training.timing import median_seconds

    for what, rows, columns, inner in sizes.products:
        x, g = (xp.zeros((1, inner, n), np.float32) for n in (rows, columns))
        cut = median_seconds(xp, lambda x=x, g=g: gpu._long_product(x, g), sizes.rounds)
        one = lambda x=x, g=g: gpu.matmul(x.swapaxes(-1, -2), g)
        whole = median_seconds(xp, one, sizes.rounds)
        label = f"{what}: {rows}×{columns} over {inner:,}"
        yield Row(label, milliseconds(cut), f"in one product {milliseconds(whole)}", cut / whole)


# --- the study ----------------------------------------------------------------------------


def made_up_data(train, test):
    """Ten patterns in noise, as many as MNIST has: what they show takes no time to compute."""
    from minires.study.cells import Data, Source

    class MadeUp(Source):
        def data(self):
            rng = np.random.default_rng(0)
            patterns = rng.uniform(-1, 1, (10, 28, 28, 1)).astype(np.float32)

            def images_and_labels(count):
                labels = rng.integers(0, 10, count)
                images = rng.random((count, 28, 28, 1), np.float32)
                images += patterns[labels] - 0.5
                return images, labels

            return Data(*images_and_labels(train), *images_and_labels(test))

    return MadeUp("", "made up", train, test, None, "")


def groups_of(profile, most):
    """{(name, how many cells of this kind there are): some to be timed}, of each kind of cell."""
    from minires.study.grid import nearest

    kinds = {}
    for cell in profile.cells():
        parts = sorted(profile.parts(cell) - {"portrait"})
        name = "pre-trainings" if cell.is_pretraining else "fine-tunings"
        kinds.setdefault(", with ".join([name, *parts]), []).append(cell)
    middle = "sgd", nearest(profile.l1, 0.2), max(profile.dropout)
    return {
        (name, len(cells)): [c for c in cells if (c.optimizer, c.l1, c.dropout) == middle][:most]
        for name, cells in kinds.items()
    }


def warm_up(profile, source, cell):
    """Kernels are compiled, and the images go to the card."""
    from minires.study.cells import Start, compute

    theta = profile.model(cell.dropout, (28, 28, 1)).init(np.random.default_rng(0))
    compute([cell], replace(profile, updates=4), source, [Start(theta, {})], "gpu")


def study(xp, sizes):
    """How long the full profile takes: a group of each kind of cell, times how many there are."""
    from minires.study.cells import Start, compute

    profile = sizes.study
    source = made_up_data(profile.train or 60_000, profile.test or 10_000)
    groups = groups_of(profile, sizes.together)
    warm_up(profile, source, next(c for cells in groups.values() for c in cells if c.l2))
    minutes, starts = 0.0, {}
    for (name, count), cells in groups.items():
        before = None if cells[0].is_pretraining else [starts[cell.pretraining] for cell in cells]
        begin = time.perf_counter()
        outcomes = compute(cells, profile, source, before, "gpu")
        seconds = (time.perf_counter() - begin) / len(cells)
        for cell, outcome in zip(cells, outcomes, strict=True):
            if "diverged" in outcome.record:
                raise RuntimeError(f"{cell.key}: {outcome.record['diverged']}")
            if cell.is_pretraining:
                starts[cell] = Start(outcome.theta, outcome.record["methods"]["pretrained"])
        minutes += seconds * count / 60
        label = f"{len(cells)} {name}, each"
        yield Row(label, f"{seconds:.3f} s", f"side by side; there are {count}")
    done = f"{len(profile.cells())} cells, by these"
    yield Row("full profile", f"{minutes:.1f} min", done, minutes, 10)


# --- is it right? -------------------------------------------------------------------------


def check(xp, sizes):
    """Every kernel against its definition; what fails has a row of its own."""
    from minires.commands.machine_check import findings

    found = []
    for finding in findings("gpu"):
        found.append(finding)
        if not finding.passed:
            error = "" if finding.error is None else f"{finding.error:.1e}"
            yield Row(f"  {finding.what}: FAILED", error, finding.remark)
    passed = sum(finding.passed for finding in found)
    yield Row("checks that passed", f"{passed} of {len(found)}", "", failed=passed < len(found))


def parity(xp, sizes):
    """The tests on the card, a file after the other, whose output is seen as it comes."""
    for path in sorted((ROOT / "tests").glob("test_gpu_*.py")):
        # A newer Python or NumPy may warn of what this project does not use yet.
        options = ["-m", "gpu", "-W", "default", "--maxfail=30", "-p", "no:cacheprovider"]
        command = [sys.executable, "-u", "-m", "pytest", *options, str(path)]
        search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            done = subprocess.run(
                command, cwd=ROOT, timeout=SECONDS, env=os.environ | {"PYTHONPATH": search}
            ).returncode
        except subprocess.TimeoutExpired:
            done = None
        result = {0: "passed", 5: "no tests", None: f"not done in {SECONDS} s"}.get(done, "FAILED")
        yield Row(f"tests: {path.stem}", result, "", failed=done not in (0, 5))


# --- all together -------------------------------------------------------------------------


def measure(part, xp, sizes, seconds=SECONDS):
    """The rows of a stage, as they come; those that begin after its time is up are left out."""
    large_network = {"mobilenet": "mobilenet_v2", "inception": "inception_v3"}
    if part in large_network:
        rows = large(xp, sizes, large_network[part])
    else:
        rows = globals()[part](xp, sizes)
    start = time.perf_counter()
    for row in rows:
        yield row
        # A file of tests has a limit of its own, and the study's last row is what counts.
        if part not in ("parity", "study") and time.perf_counter() - start > seconds:
            yield Row(f"  {part}: time is up", f"{seconds} s", "the rest is left out")
            return


def line(row):
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    cells = f"{row.what:<44}{row.ours:>14}  {row.reference:<30}{ratio:>8}  {row.verdict()}"
    return cells.rstrip()


class Results:
    """The file of what has been measured, a line for every row and for every finished stage.

    path   of the file
    card   what it was measured on: other cards' lines do not count
    """

    def __init__(self, path, card):
        self.path, self.card, self.rows, self.finished = Path(path), card, {}, set()
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        if text and not text.endswith("\n"):  # the lease ended while a line was written
            self.path.write_text(text + "\n", "utf-8")
        for entry_text in text.splitlines():
            try:
                entry = json.loads(entry_text)
            except ValueError:
                continue
            if entry["card"] != card:
                continue
            if "row" in entry:
                self.rows.setdefault(entry["part"], []).append(Row(**entry["row"]))
            elif entry.get("begins"):  # what an earlier attempt measured does not count
                self.rows[entry["part"]] = []
                self.finished.discard(entry["part"])
            else:
                self.finished.add(entry["part"])

    def add(self, part, row=None, begins=False):
        """Write a row; or that a stage begins; or that it is finished."""
        entry = {"card": self.card, "part": part} | ({"row": asdict(row)} if row else {})
        entry |= {"begins": True} if begins else {}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def run_stages(parts, results, xp, sizes, again=False):
    """Measure what is not measured yet, and print everything; returns whether all is right."""
    right = True
    for part in parts:
        if part in results.finished and not again:
            print(f"--- {part} (measured before)")
            for row in results.rows[part]:
                print(line(row))
                right &= not row.failed
            continue
        print(f"--- {part}", flush=True)
        start = time.perf_counter()
        results.add(part, begins=True)
        try:
            for row in measure(part, xp, sizes):
                print(line(row), flush=True)
                right &= not row.failed
                results.add(part, row)
            results.add(part)
        except Exception as error:  # the others can be measured; the same command tries it again
            print(f"    FAILED: {type(error).__name__}: {error}", flush=True)
            right = False
        print(f"    {time.perf_counter() - start:.0f} s", flush=True)
    return right


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="STAGE", help=", ".join(PARTS))
    parser.add_argument("--again", action="store_true", help="measure what is measured, too")
    parser.add_argument("--results", default=RESULTS, help=f"the file of results ({RESULTS})")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        names = ", ".join(sorted(unknown))
        parser.error(f"there is no stage {names}; there are {', '.join(PARTS)}")
    from minires import arrays

    try:
        xp = arrays.module_for("gpu")
        import torch
    except (RuntimeError, ImportError) as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: this PyTorch sees no GPU", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    card = f"{arrays.describe_gpus()[0]}; {arrays.describe_cuda()}; PyTorch {torch.__version__}"
    print(card, flush=True)
    results = Results(options.results, card)
    right = run_stages(options.parts or PARTS, results, xp, Sizes(), options.again)
    return 0 if right else 1


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
