"""Start-up: whole-process seconds of the commands that must not wait for torch.

    python benchmarks/startup.py --runs 9

Prints the median and the quickest of several runs of each, as the installed script runs them.
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = (["--help"], ["run", "--help"], ["list"], ["list", "--json"])
CODE = "from gradebench.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    for command in COMMANDS:
        seconds = sorted(seconds_of(command) for _ in range(runs))
        print(f"gradebench {' '.join(command)}: median {statistics.median(seconds):.3f} s, quickest {seconds[0]:.3f} s")


def seconds_of(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", CODE, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
