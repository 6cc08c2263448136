"""Time several functions fairly on a noisy machine.

Rounds are interleaved, a few calls of each function in turn, so that a slow minute slows all
of them; the figures are medians, and the noise is the distance between the quartiles.
"""

import os
import statistics
import subprocess
import sys
import time

THREADS = 2


def interleave(functions, rounds, calls=3):
    """Seconds of each call: {name: [seconds, …]}.

    In a round each function is called once untimed, then `calls` times: threads that the
    other library left spinning have gone to sleep, and its own are awake.
    """
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            for _ in range(calls):
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
    return times


def report(title, times, reference, unit="ms", per=1):
    """Print median, quartiles and the ratio to the reference; return {name: ratio}."""
    scale = {"s": 1, "ms": 1e3}[unit] / per
    base = statistics.median(times[reference])
    print(f"\n{title}")
    print(f"  {'':<28}{'median':>10}{'quartiles':>20}{'ratio':>9}")
    ratios = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        ratios[name] = middle / base
        print(
            f"  {name:<28}{middle * scale:>7.1f} {unit:<3}"
            f"{low * scale:>9.1f} … {high * scale:<7.1f}{ratios[name]:>9.2f}"
        )
    return ratios


def scaling(functions, rounds, calls=1):
    """Time minires and PyTorch on one thread and on `THREADS`; print how many times faster that is.

    With them a product of PyTorch: how much faster these cores can be at all.
    """
    import torch

    import minires

    def on(count, function):
        def call():
            torch.set_num_threads(count)
            with minires.arrays.threads(count):
                function()

        return call

    a, b = torch.randn(2, 2048, 2048)
    functions = functions | {"a product alone (PyTorch)": lambda: torch.mm(a, b)}
    print(f"\n{THREADS} threads against one (medians, ms)")
    for name, function in functions.items():
        pair = {count: on(count, function) for count in (1, THREADS)}
        times = interleave(pair, rounds, calls)
        one, many = (statistics.median(times[count]) * 1e3 for count in (1, THREADS))
        print(f"  {name:<32}{one:>9.1f}{many:>9.1f}{one / many:>8.2f} times faster")


def one_process():
    """The environment for a child: the same number of threads everywhere."""
    count = str(THREADS)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MINIRES_THREADS")
    return os.environ | dict.fromkeys(names, count)


def child_peak(script, *arguments):
    """Run a script afresh; its last line of output is its own peak memory in MiB."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        check=True, capture_output=True, text=True, env=one_process(),
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def own_peak():
    """Peak resident memory of this process, MiB.

    From /proc, since `getrusage` counts what the parent had before this program began.
    """
    with open("/proc/self/status") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(kilobytes) / 1024
