"""SIGKILL of the run or of one of its workers at random times, resumed each time: what is left in the end?

    python benchmarks/fault_campaign.py [--kills 50] [--seed 0] [--csv FILE]

A small run on enumerable-lm is made once in peace. Then the same run is made in other folders, killed at random times
and started again, until so many kills have happened. Held against the first: metrics.csv and leaderboard.csv, but for
seconds and memory; every finished cell stays as it was written; no temporary file is left; no worker outlives its run.
"""

import argparse
import csv
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil

TIMES = ["seconds", "seconds_per_step", "peak_memory_bytes"]
TASK = "enumerable-lm:vocabulary=3,horizon=3,layers=1,width=4"
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from gradebench.cli import main; main()"
)
DRAFT = re.compile(r"\..+\.[0-9a-f]{32}|\.lock|\.[0-9]+")


@dataclass
class Storm:
    """What happened to the runs in one folder."""

    parents: int = 0
    workers: int = 0
    starts: int = 0
    resumed: int = 0  # starts that found the checkpoint of a training
    faults: list[str] = field(default_factory=list)
    finished: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # cell -> when and what was written

    def look(self, out: Path) -> None:
        """Hold what is finished now against what was finished before."""
        now = {}
        for path in out.glob("cells/*/cell.json"):
            content = path.read_bytes()
            if b'"status": "ok"' in content:
                now[path.parent.name] = (path.stat().st_mtime_ns, content)
        for cell, written in self.finished.items():
            if cell not in now:
                self.faults.append(f"{cell} was finished and is lost")
            elif now[cell] != written:
                self.faults.append(f"{cell} was finished and was computed again")
        self.finished = now


def start(out: Path, steps: int, seeds: int, log: Path) -> subprocess.Popen:
    options = ["-t", TASK, "-e", "rloo", "-e", "ppo", "-e", "relax", "--seeds", f"0-{seeds - 1}", "--steps", str(steps)]
    options += ["--jobs", "2", "--checkpoint-every", "0.1", "--out", str(out)]
    with open(log, "a") as lines:
        return subprocess.Popen([sys.executable, "-c", COMMAND, "run", *options], stdout=lines, stderr=lines)


def kill_one(process: subprocess.Popen, chance: random.Random, storm: Storm) -> None:
    """The run itself, or one of its workers, whichever the dice say."""
    children = [
        child for child in psutil.Process(process.pid).children() if "resource_tracker" not in " ".join(child.cmdline())
    ]
    if children and chance.random() < 0.6:
        storm.workers += 1
        print("w", end="", flush=True)
        chance.choice(children).kill()
        return
    storm.parents += 1
    print("r", end="", flush=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    storm.faults += [f"worker {child.pid} outlived its run" for child in alive]


def unfinished(out: Path) -> list[Path]:
    """The trainings that cells which haven't ended can go on with; finished ones keep theirs, for more steps."""
    return [path for path in out.glob("cells/*/training.safetensors") if not (path.parent / "cell.json").is_file()]


def left_over(out: Path) -> list[str]:
    return [f"{path} was left" for path in out.rglob("*") if DRAFT.fullmatch(path.name)]


def timeless(out: Path) -> tuple[str, str]:
    metrics = pd.read_csv(out / "metrics.csv", dtype=str, keep_default_na=False)
    board = pd.read_csv(out / "leaderboard.csv", dtype=str, keep_default_na=False)
    return metrics[~metrics["metric"].isin(TIMES)].to_csv(index=False), board.drop(columns=TIMES[1:]).to_csv(
        index=False
    )


def storm_over(
    out: Path, calm: Path, kills: int, chance: random.Random, steps: int, seeds: int, seconds: float
) -> Storm:
    """Runs into one folder until one comes to its end, with at most so many kills."""
    storm, log = Storm(), out.parent / "log"
    while True:
        storm.resumed += bool(unfinished(out))
        storm.starts += 1
        process = start(out, steps, seeds, log)
        while process.poll() is None and storm.parents + storm.workers < kills:
            try:
                process.wait(chance.uniform(0, 0.3) * seconds)
            except subprocess.TimeoutExpired:
                kill_one(process, chance, storm)
        status = process.wait()
        storm.look(out)
        if status == 0:
            break
        if status not in (1, -signal.SIGKILL):
            storm.faults.append(f"exit status {status}")
            break
    if b"Traceback" in log.read_bytes():
        storm.faults.append(f"a traceback in {log.read_text()[-2000:]}")
    for name, one, other in zip(("metrics.csv", "leaderboard.csv"), timeless(out), timeless(calm), strict=True):
        if one != other:
            storm.faults.append(f"{name} differs from that of the run in peace")
    storm.faults += left_over(out)
    return storm


def campaign(folder: Path, kills: int, seed: int, steps: int, seeds: int) -> list[Storm]:
    chance, storms = random.Random(seed), list[Storm]()
    calm = folder / "calm" / "run"  # of the same name everywhere, as the name is a column
    calm.parent.mkdir(parents=True)
    began = time.monotonic()
    status = start(calm, steps, seeds, calm.parent / "log").wait()
    seconds = time.monotonic() - began
    if status:
        raise SystemExit((calm.parent / "log").read_text())
    print(f"in peace: {len(list(calm.glob('cells/*/cell.json')))} cells in {seconds:.1f} s", flush=True)
    while (done := sum(storm.parents + storm.workers for storm in storms)) < kills:
        out = folder / f"storm-{len(storms)}" / "run"
        out.parent.mkdir()
        storm = storm_over(out, calm, kills - done, chance, steps, seeds, seconds)
        storms.append(storm)
        print(
            f": {storm.parents} runs and {storm.workers} workers killed, {storm.starts} starts, {storm.resumed} with a "
            f"training to go on with: {'; '.join(storm.faults) or 'all as in peace'}",
            flush=True,
        )
    return storms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=4, help="three estimators each")
    parser.add_argument("--csv", type=Path, help="a line for each folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("GRADEBENCH_CACHE", f"{folder}/cache")
        storms = campaign(Path(folder) / "runs", options.kills, options.seed, options.steps, options.seeds)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["folder", "runs_killed", "workers_killed", "starts", "starts_with_checkpoint", "faults"])
            for number, storm in enumerate(storms):
                row = (storm.parents, storm.workers, storm.starts, storm.resumed, "; ".join(storm.faults))
                lines.writerow([number, *row])
    faults = [fault for storm in storms for fault in storm.faults]
    killed = sum(storm.parents for storm in storms), sum(storm.workers for storm in storms)
    print(f"{killed[0]} runs and {killed[1]} workers killed: {len(faults)} faults")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
