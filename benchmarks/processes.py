"""Sampling in many processes of one thread each beside one such process, with the bundled checkpoint.

Every command runs several times, in turn; the fastest of each counts. "Steady" leaves out the
start of Python and torch and the first batch of each process; the command has all of it, and
torchrun's own start.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ONE = [sys.executable, "-m", "ddimctl"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{'images':>6}  {'':8}  {'one':>8}  {options.processes:>8}  {'gain':>6}")
    for count in options.images:
        rates, times = one_and_many(
            options.processes, count, options.batch_size, options.steps, options.repeats
        )
        print(
            f"{count:>6}  steady    {rates[0]:6.2f}/s  {rates[1]:6.2f}/s  {rates[1] / rates[0]:5.2f}x"
        )
        print(
            f"{count:>6}  command   {times[0]:6.1f} s  {times[1]:6.1f} s  {times[0] / times[1]:5.2f}x"
        )


def one_and_many(
    processes: int, count: int, batch_size: int, steps: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Of one process and of so many: images a second in steady state, and seconds of the command."""
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    many += ["--nproc-per-node", str(processes), "-m", "ddimctl"]
    more = ["sample", "-n", str(count), "--steps", str(steps), "--device", "cpu"]
    more += ["--batch-size", str(batch_size), "--save", "images"]
    rates: dict[int, list[float]] = {1: [], processes: []}
    times: dict[int, list[float]] = {1: [], processes: []}
    for _ in range(repeats):
        for number, start in ((1, ONE), (processes, many)):
            with tempfile.TemporaryDirectory() as out:
                times[number].append(timed([*start, *more, "--out", f"{out}/run"]))
                rates[number].append(steady_rate(Path(out, "run"), number, batch_size))
    return [max(each) for each in rates.values()], [min(each) for each in times.values()]


def timed(command: list[str]) -> float:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=env)
    return time.perf_counter() - began


def steady_rate(out: Path, processes: int, batch_size: int) -> float:
    """Images a second from the first batch of each process to the end of the last.

    Each process makes a stretch of the images, all as long where the numbers divide.
    """
    ends = [path.stat().st_mtime for path in sorted((out / "images").iterdir())]
    share = len(ends) // processes
    stretches = [ends[i : i + share] for i in range(0, len(ends), share)]
    return sum(
        (share - batch_size) / (max(ends) - max(stretch[:batch_size])) for stretch in stretches
    )


if __name__ == "__main__":
    main()
