"""How far a run is: steps within cells and the time left, on a terminal a bar, elsewhere lines."""

import io
import os

import pytest

from gradebench.core import alive
from gradebench.core import progress as told
from gradebench.experiment.plan import Cell
from gradebench.reporting import console
from gradebench.reporting.progress import TerminalProgress

CELL = Cell("imdb", "imdb", {}, "rloo", "rloo", 3)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def started(clock):
    """A run of 4 cells, one of which is kept from before, and 2 reference gradients; without a bar."""
    progress = TerminalProgress(clock)
    progress.start(total=4, done=1)
    progress.phase(references=2)
    yield progress
    progress.stop()


def worker(progress, name, told_by_it):
    (progress.folder / name).write_text(told_by_it)


def test_steps_of_cells_at_work_count_and_the_time_left_is_over_all_phases(started, clock):
    assert started.part() == 0 and started.state() == "reference gradients 0/2, cells 1/4"
    clock.now += 10
    worker(started, "1", "30\t40\treference gradient seed 0")
    worker(started, "2", "10\t40\treference gradient seed 1")
    assert started.part() == pytest.approx(1 / 5)  # of 2 references and 3 cells
    assert "about 40 s left: reference gradient seed 0 30/40; reference gradient seed 1 10/40" in started.state()
    started.advance(None, "ok")
    started.advance(None, "ok")
    for name in ("1", "2"):
        (started.folder / name).unlink()
    worker(started, "1", "20\t40\trloo seed 3")
    clock.now += 15
    assert started.part() == pytest.approx(2.5 / 5)
    assert started.state() == "cells 1/4, about 25 s left: rloo seed 3 20/40"
    for _ in range(3):
        started.advance(CELL, "ok")
    assert started.part() == 1 and "left" not in started.state()


def test_what_a_worker_tells_is_read_and_what_is_damaged_or_old_is_not(started):
    worker(started, "1", "half a li")
    worker(started, "2", "1\t2\trloo\tseed 3")
    worker(started, "3", "1\t2\tgone")
    os.utime(started.folder / "3", (0, 0))
    assert told.of_workers(started.folder) == [told.Told("rloo\tseed 3", 1, 2)]
    told.tell("this process", 3, 4)
    assert told.Told("this process", 3, 4) in told.of_workers(started.folder)
    told.ended()
    assert len(told.of_workers(started.folder)) == 1


def test_the_folder_goes_with_the_run_and_workers_no_longer_write(clock):
    progress = TerminalProgress(clock)
    progress.start(total=1, done=0)
    folder = progress.folder
    assert os.environ[told.FOLDER] == str(folder) and folder.is_dir()
    progress.stop()
    assert told.FOLDER not in os.environ and not folder.exists()
    told.tell("nobody listens", 1, 2)
    told.ended()


def test_on_a_terminal_a_bar_shows_cells_steps_and_the_time_left(clock):
    screen = io.StringIO()
    progress = TerminalProgress(clock)
    progress.console = console.PlainConsole(file=screen, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    progress.start(total=4, done=1)
    clock.now += 10
    worker(progress, "1", "20\t40\trloo seed 3")
    progress.advance(CELL, "ok")
    progress.stop()
    assert "cells 2/4, about 10 s left: rloo seed 3 20/40" in screen.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_bar_fits_the_terminal_and_cuts_no_number(clock, width):
    screen = io.StringIO()
    progress = TerminalProgress(clock)
    progress.console = console.PlainConsole(file=screen, force_terminal=True, width=width, _environ={"TERM": "xterm"})
    progress.start(total=40, done=1)
    clock.now += 10
    for name in "1234":
        worker(progress, name, f"20\t40\tgrade-ste seed {name}")
    progress.advance(CELL, "ok")
    progress.stop()
    assert "cells 2/40, about 2 min left" in screen.getvalue() and "…" not in screen.getvalue()
    named = screen.getvalue().split("\r")[-1]
    assert ("grade-ste seed 1 20/40; grade-ste seed 2 20/40 and 2 more" in named) == (width >= 140)


def test_on_a_dumb_terminal_there_is_no_bar(clock):
    screen = io.StringIO()
    progress = TerminalProgress(clock)
    progress.console = console.PlainConsole(file=screen, force_terminal=True, _environ={"TERM": "dumb"})
    progress.start(total=4, done=1)
    progress.advance(CELL, "ok")
    progress.stop()
    assert screen.getvalue() == ""


# --- signs of life ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terminal", "longest"), [(True, 3), (False, 30)])
def test_the_silence_is_never_longer_than_promised(clock, terminal, longest):
    """Through ten minutes of a command that says nothing but once, after 100 s."""
    watch = alive.Watch("run", terminal, clock)
    signs, start = [], clock.now
    while clock.now < start + 600:
        clock.now += alive.CHECK
        if clock.now == start + 100:
            watch.heard()
            signs.append(clock.now)
        if watch.sign():
            signs.append(clock.now)
    assert max(later - sooner for sooner, later in zip([start, *signs], signs, strict=False)) <= longest


def test_a_sign_says_how_long_it_took_what_is_done_and_how_long_the_rest_takes(clock, monkeypatch):
    watch = alive.Watch("run", False, clock)
    clock.now += 40
    assert watch.sign() == "gradebench run: 40 s\n"
    assert watch.sign() == ""  # which was one
    monkeypatch.setattr(told, "here", lambda: (told.Told("pretraining", 100, 400), 20.0))
    clock.now += 30
    assert watch.sign() == "gradebench run: 70 s, pretraining: 100 of 400, about 60 s left\n"
    watch.describe = lambda: "cells 1/4"
    clock.now += 30
    assert watch.sign() == "gradebench run: 100 s, cells 1/4\n".replace("100 s", "2 min")


def test_a_line_of_ours_goes_before_anything_else_is_written(clock):
    watch = alive.Watch("run", True, clock)
    assert watch.sign() == "" and watch.heard() == ""
    clock.now += 3
    assert watch.sign(20) == "\r\x1b[Kgradebench run: 3 s"[: 4 + 19]
    assert watch.heard() == "\r\x1b[K" and watch.heard() == "" and watch.sign() == ""


def test_a_slow_command_gives_signs_on_stderr_alone(monkeypatch, capsys):
    import time

    monkeypatch.setattr(alive, "IN_LOG", 0.05)
    monkeypatch.setattr(alive, "CHECK", 0.01)
    with alive.watched("run"):
        time.sleep(0.5)
    said = capsys.readouterr()
    assert said.out == "" and "gradebench run: 0 s\n" in said.err and alive.watch is None


def test_work_tells_each_step_and_its_end():
    seen = [told.here() for _ in told.track("work", range(3), 3)]
    assert [one[0].done for one in seen] == [0, 1, 2] and told.here() is None


def test_signs_say_what_a_command_is_at_and_how_far_it_is(clock):
    watch = alive.Watch("merge", False, clock)
    seen = []
    for _ in console.track(range(3), 3, "tasks"):
        clock.now += alive.IN_LOG
        seen.append(watch.sign())
    with told.doing("comparing 100 tasks"):
        clock.now += alive.IN_LOG
        seen.append(watch.sign())
    assert "tasks: 0 of 3" in seen[0] and "tasks: 2 of 3" in seen[2] and seen[3].endswith(", comparing 100 tasks\n")
    clock.now += alive.IN_LOG
    assert "tasks" not in watch.sign()
