"""SIGKILL of commands or of their workers at random times, and the same commands again: what is left in the end?

    python benchmarks/fault_campaign.py [--kills 100] [--seed 0] [--csv FILE]

Two runs, their merge, a report and a tuning (COMMANDS) are made once in peace, on a task that trains its vocabulary,
policy and reward into a cache of its own. Then the same commands are given in other folders, killed at random times
and given again, until so many kills have happened; ahead of the second run one bit of a cached file is flipped. In the
end every byte of every file, the cache's too, is held against the folder of peace, and every finished cell must have
stayed as it was written, no temporary file be left in a run, and no worker outlive its run.

Clocks tick by calls and memory is a constant, so that seconds and bytes are equal too. Commands are forked off a process
that has imported everything, and so are workers: a start takes tenths of a second.
"""

import argparse
import csv
import functools
import io
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from gradebench import cli
from gradebench.experiment import preparing, runner, starting, train
from gradebench.reporting import report, terminal, terminal_tables  # noqa: F401
from gradebench.storage.cache import fault_of
from gradebench.tasks import grammar

TASK = f"{Path(__file__).with_name('small_task.py')}:Small:corpus=embedded,size=mini"
_RUN = f"-t {TASK} --batch 8 --jobs 2"
COMMANDS = {
    "run": f"run {_RUN} -e rloo -e a2c --seeds SEEDS --steps 6 --checkpoint-every 0 --out run",
    "part": f"run {_RUN} -e reinforce --seeds SEEDS --steps 6 --checkpoint-every 0 --out part",
    "merge": "merge run part --out whole",
    "report": "report run part --out page",
    "tune": f"tune {_RUN} -e rloo --rates 1e-2,1e-1 --extensions 1 --seeds 9 --steps 3 --out tuning",
}
STAGES = ["preparation", "cache", "cells", "tables", "merge", "report", "tune"]
DRAFT = re.compile(r"\..+\.[0-9a-f]{32}|\.[0-9]+|\.merging|\.lock")
FORK = multiprocessing.get_context("fork")


@dataclass
class Storm:
    """What happened to the commands in one folder."""

    killed: Counter[str] = field(default_factory=Counter)  # by stage
    workers: int = 0  # of those killed; the others were commands
    starts: int = 0
    resumed: int = 0  # starts that found the checkpoint of a training
    lost: int = 0  # cells that were finished, and then weren't or were computed again
    wrong: int = 0  # bytes
    faults: list[str] = field(default_factory=list)
    finished: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # cell -> when and what was written

    def look(self, site: Path) -> None:
        """Hold what is finished now against what was finished before."""
        now = {}
        for path in site.glob("*/cells/*/cell.json"):
            content = path.read_bytes()
            if b'"status": "ok"' in content:
                now[str(path.parent.relative_to(site))] = (path.stat().st_mtime_ns, content)
        for cell, written in self.finished.items():
            if now.get(cell) != written:
                self.lost += 1
                self.faults.append(f"{cell} was finished and is {'computed again' if cell in now else 'lost'}")
        self.finished = now

    def compare(self, site: Path, calm: Path) -> None:
        """Count the bytes that aren't those of the folder of peace."""
        ours, theirs = contents(site), contents(calm)
        for name in sorted({*ours, *theirs}):
            one, other = ours.get(name, b""), theirs.get(name, b"")
            if one != other:
                self.wrong += abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False))
                self.faults.append(f"{name} differs from that of peace")


def contents(site: Path) -> dict[str, bytes]:
    """By name, every file but those that begin with a dot: what a killed process left."""
    files = (path for path in site.rglob("*") if path.is_file())
    names = {path: path.relative_to(site) for path in files}
    return {
        str(name): path.read_bytes() for path, name in names.items() if not any(p.startswith(".") for p in name.parts)
    }


class Ticks:
    """A clock that goes on by a millisecond, or so, a call: by a power of two, whose sums are exact."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2.0**-10
        return self.now


def start_worker(target: Callable[..., None], arguments: tuple[Any, ...], mark: str, forked: bool) -> Any:
    """A child of this process, which has imported everything."""
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def command(site: Path, line: str) -> None:
    """In a process of its own: a command line, as it would run in that folder."""
    os.chdir(site)
    os.environ["GRADEBENCH_CACHE"] = str(site / "cache")
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # else folders differ by their dates
    with open(site.parent / f"{site.name}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb")), io.TextIOWrapper(os.fdopen(2, "wb"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    time.perf_counter = Ticks()
    train.peak_memory = lambda device: 1e6
    starting.start = start_worker
    sys.argv = ["gradebench", *line.split()]
    try:
        cli.main()
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        sys.exit(3)


def start(site: Path, name: str) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=command, args=(site, COMMANDS[name]))
    process.start()
    return process


def stage_of(site: Path, name: str, cells: int) -> str:
    """What a command is about, as far as its files tell; `cells` of it are to be finished."""
    if name not in ("run", "part"):
        return name
    cached = list(site.glob("cache/imdb-*"))
    if not cached or fault_of(cached[0]):
        return "cache" if cached else "preparation"
    return "cells" if len(list(site.glob(f"{name}/cells/*/cell.json"))) < cells else "tables"


def kill_one(process: multiprocessing.process.BaseProcess, chance: random.Random, storm: Storm) -> bool:
    """The command itself, or one of its workers, whichever the dice say; whether there was one left."""
    try:
        children = [
            child
            for child in psutil.Process(process.pid).children()
            if "resource_tracker" not in " ".join(child.cmdline())
        ]
        if children and chance.random() < 0.6:
            chance.choice(children).kill()
            storm.workers += 1
            return True
        psutil.Process(process.pid).kill()
    except psutil.NoSuchProcess:
        return False
    process.join()
    _, alive = psutil.wait_procs(children, timeout=10)
    storm.faults += [f"worker {child.pid} outlived its run" for child in alive]
    return process.exitcode == -signal.SIGKILL


def insist(site: Path, name: str, kills: int, chance: random.Random, seconds: float, cells: int, storm: Storm) -> None:
    """Give the command until it comes to its end, with at most so many kills."""
    while True:
        storm.resumed += any(unfinished(site))
        storm.starts += 1
        process = start(site, name)
        while kills and process.is_alive():
            process.join(chance.uniform(0, chance.choice([0.1, 0.8])) * seconds)  # what comes first is short
            stage = stage_of(site, name, cells)
            if process.is_alive() and kill_one(process, chance, storm):
                kills -= 1
                storm.killed[stage] += 1
                print(stage[0], end="", flush=True)
        process.join()
        storm.look(site)
        if process.exitcode == 0:
            return
        if process.exitcode not in (1, -signal.SIGKILL):
            storm.faults.append(f"{name}: exit status {process.exitcode}")
            return


def unfinished(site: Path) -> Iterator[Path]:
    """The trainings that cells which haven't ended can go on with; finished ones keep theirs, for more steps."""
    trainings = site.glob("*/cells/*/training.safetensors")
    return (path for path in trainings if not (path.parent / "cell.json").is_file())


def flip_a_bit(site: Path, chance: random.Random) -> None:
    """Of a file in the cache."""
    path = chance.choice(sorted(site.glob("cache/imdb-*/*")))
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def storm_over(
    site: Path, calm: Path, kills: int, most: int, chance: random.Random, seconds: dict[str, float]
) -> Storm:
    """All commands in one folder, with at most so many kills, and `most` of one command."""
    storm = Storm()
    for name in COMMANDS:
        if name == "part":
            flip_a_bit(site, chance)
        cells = len(list(calm.glob(f"{name}/cells/*/cell.json")))
        insist(site, name, min(kills - storm.killed.total(), most), chance, seconds[name], cells, storm)
    log = site.parent / f"{site.name}.log"
    if "Traceback" in (said := log.read_text()):
        storm.faults.append(f"a traceback in {said[-2000:]}")
    storm.faults += [
        f"{path} was left"
        for path in site.rglob("*")
        if DRAFT.fullmatch(path.name) and path.relative_to(site).parts[0] != "cache"  # whose drafts go with later ones
    ]
    storm.compare(site, calm)
    return storm


def campaign(folder: Path, kills: int, most: int, seed: int) -> list[Storm]:
    chance, storms, seconds = random.Random(seed), list[Storm](), dict[str, float]()
    calm = folder / "calm"
    calm.mkdir(parents=True)
    for name in COMMANDS:
        began = time.monotonic()
        process = start(calm, name)
        process.join()
        seconds[name] = time.monotonic() - began
        if process.exitcode:
            raise SystemExit((folder / "calm.log").read_text())
    print("in peace:", ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items()), flush=True)
    while (done := sum(storm.killed.total() for storm in storms)) < kills:
        site = folder / f"storm-{len(storms)}"
        site.mkdir()
        storms.append(storm := storm_over(site, calm, kills - done, most, chance, seconds))
        counts = ", ".join(f"{count} in {stage}" for stage, count in storm.killed.items())
        print(f": {counts}; {storm.starts} starts: {'; '.join(storm.faults) or 'all as in peace'}", flush=True)
    return storms


def get_ready() -> None:
    """Import and read once what every command would, make its numbers few, and keep to one thread: a pool of threads
    doesn't outlive a fork."""
    torch.set_num_threads(1)
    torch.set_num_threads = lambda nthreads: None
    plan = functools.partial(preparing.Plan, evaluations=2, warm_up=8)
    plan.probe_draws, plan.reference_draws = 4, 2  # type: ignore[attr-defined]
    preparing.Plan = plan  # type: ignore[assignment,misc]
    grammar.generate_reviews = functools.cache(grammar.generate_reviews)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADEBENCH_CACHE"] = f"{folder}/cache"
        request = runner.Request(["rloo", "a2c", "reinforce"], [TASK], out=f"{folder}/run")
        runner.prepare(request, runner.Progress())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--most", type=int, default=3, help="kills of one command in one folder")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign's own dice")
    parser.add_argument("--seeds", type=int, default=2, help="of each run")
    parser.add_argument("--csv", type=Path, help="a line for each folder")
    options = parser.parse_args()
    get_ready()
    for name, line in COMMANDS.items():
        COMMANDS[name] = line.replace("SEEDS", f"0-{options.seeds - 1}")
    with tempfile.TemporaryDirectory() as folder:
        storms = campaign(Path(folder) / "runs", options.kills, options.most, options.seed)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["folder", *STAGES, "of_workers", "starts", "starts_with_checkpoint", "lost", "wrong_bytes",
                            "faults"])  # fmt: skip
            for number, storm in enumerate(storms):
                row = (storm.workers, storm.starts, storm.resumed, storm.lost, storm.wrong, "; ".join(storm.faults))
                lines.writerow([number, *(storm.killed[stage] for stage in STAGES), *row])
    killed = Counter(stage for storm in storms for stage in storm.killed.elements())
    print(", ".join(f"{killed[stage]} in {stage}" for stage in STAGES))
    faults = [fault for storm in storms for fault in storm.faults]
    lost, wrong = sum(storm.lost for storm in storms), sum(storm.wrong for storm in storms)
    print(f"{killed.total()} kills, {lost} lost, {wrong} wrong bytes, {len(faults)} faults")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
