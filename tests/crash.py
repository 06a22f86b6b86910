"""Kills runs with SIGKILL at drawn points, goes on with them, and compares what comes out with whole runs.

    python -m tests.crash --kills 1000
    python -m tests.crash --kills 100 --method adalora --processes 2 --seed 7

Each run is forked, as one process or as two of DDP, from a process that has loaded all there is to load. It
is killed before a change of a file, at a moment of a save, of an evaluation, or of all its time, each drawn
at random; gone on with, killed again, until it comes to its end. Of two processes a drawn one is killed, the
other up to 0.3 s later, wherever it is then, as a launcher ends it. Then the run's figures, answers, weights,
optimizer's state and files must be those of a run that nobody killed, to the bit. After every kill each
checkpoint that is there must be whole. Pictures are blank, for drawing takes longer than training here;
tests/killed.py kills runs that draw. Prints one JSON object; exit code 1 if anything was otherwise.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parent))  # as pytest has it

from conftest import BLANKS, DRAWN
from glmtune.adapters.card import read_card
from glmtune.adapters.origin import require_files
from glmtune.errors import GlmtuneError
from glmtune.run_files import is_partial, list_checkpoints
from glmtune.training.state import read_state
from glmtune.workflows import execute, train
from killed import KILLED, METHODS, counting_changes, left, recipe
from models import tiny_folder

QUIET = [
    "samples.built_in=false", "retain.report=off", "retain.ratio=0", "samples.prompts=[天上有云吗]",
    "samples.max_new_tokens=4",
]  # fmt: skip
MOST_KILLS = 10
"""Kills of one run; then it is let come to its end."""
GRACE_S = 0.3
"""The longest time that a process outlives the other that was killed."""
LONGEST_S = 120
"""Time after which processes that have not come to their end count as hanging."""
END = "{"
"""Begins the last line that a process tells; the others are its activities."""


@dataclass(frozen=True)
class Kill:
    """When to kill: before a change of a file, or so long after a beginning of an activity, or of the run."""

    at: int = 0
    activity: str = "starting"
    beginning: int = 1
    after_s: float = 0


@dataclass
class Ended:
    """How a run's processes have ended."""

    status: int
    told: list[tuple[str, float]]
    """The activities of the process that was to be killed, each with its seconds."""
    changes: int = 0
    message: str = ""


@dataclass
class Tally:
    """What has come of the kills so far."""

    kills: Counter[int] = field(default_factory=Counter)
    """By the number of processes."""
    runs: int = 0
    half_written: int = 0
    during: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)


def telling(tell: Callable[[str], None]) -> None:
    """Have this process tell what it does, as it begins to."""
    save, evaluate, make_steps = execute.save_checkpoint, execute._evaluate, execute.make_steps

    def saving(*given: Any, **named: Any) -> Any:
        tell("saving")
        saved = save(*given, **named)
        tell("stepping")
        return saved

    def evaluating(run: Any) -> Any:
        tell("evaluating")
        is_best = yield from evaluate(run)
        tell("stepping")
        return is_best

    def stepping(*given: Any) -> Iterator[Any]:
        tell("stepping")
        yield from make_steps(*given)
        tell("ending")

    for name, function in (("save_checkpoint", saving), ("_evaluate", evaluating), ("make_steps", stepping)):
        setattr(execute, name, function)


def be_process(work: Path, act: Callable[[], Any], write: int, rank: dict[str, str], at: int) -> None:
    """Be a process of a run in this fork, to the end."""
    message, count = "", None
    try:
        random.seed(0)  # a fork draws a new seed
        os.environ.update(rank)
        if rank:  # the process that was forked was alone
            AcceleratorState._reset_state(reset_partial_state=True)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        count = counting_changes(work, at)
        telling(lambda activity: os.write(write, f"{activity}\n".encode()))
        act()
    except GlmtuneError as err:
        message = str(err)
    except BaseException:  # noqa: BLE001  (or the fork would go on as its parent does)
        message = traceback.format_exc()
    os.write(write, (json.dumps({"changes": count() if count else 0, "message": message}) + "\n").encode())
    os._exit(2 if message else 0)


def told_lines(read: int, until: float) -> Iterator[str]:
    """Yield the lines of a process as they come, and an empty one each time that `until` has come."""
    rest = b""
    while True:
        if not select.select([read], [], [], max(0.0, until - time.monotonic()))[0]:
            yield ""
            until = time.monotonic() + LONGEST_S
            continue
        found = os.read(read, 65536)
        if not found:
            return
        *lines, rest = (rest + found).split(b"\n")
        yield from (line.decode() for line in lines)


def end_in(
    work: Path, act: Callable[[], Any], processes: int, draw: random.Random, kill: Kill | None
) -> Ended:
    """Run in so many forks; kill one of them, and then the others, unless they come to their end before."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    # the first alone changes files
    victim = 0 if kill is None or kill.at else draw.randrange(processes)
    children, reads = [], []
    for number in range(processes):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            rank = {**world, "RANK": str(number), "LOCAL_RANK": str(number)} if processes > 1 else {}
            be_process(work, act, write, rank, kill.at if kill and number == victim else 0)
        os.close(write)
        children.append(child)
        reads.append(read)
    told, said = _watch(children[victim], reads[victim], kill)
    status = os.waitstatus_to_exitcode(os.waitpid(children.pop(victim), 0)[1])
    if status == KILLED:
        time.sleep(draw.random() * GRACE_S if children else 0)
    for other in children:
        if status:
            os.kill(other, signal.SIGKILL)
        others = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
        status = status or others
    for read in reads:
        os.close(read)
    return Ended(status, told, **(json.loads(said) if said else {}))


def _watch(child: int, read: int, kill: Kill | None) -> tuple[list[tuple[str, float]], str]:
    """Follow a process to its end, and kill it when it is time; return its activities and its last line."""
    begun = time.monotonic()
    told, said, seen = [("starting", begun)], "", Counter({"starting": 1})
    is_timed = kill is not None and not kill.at
    until = begun + (kill.after_s if kill and is_timed and kill.activity == "starting" else LONGEST_S)
    for line in told_lines(read, until):
        if not line:
            os.kill(child, signal.SIGKILL)
            said = "" if is_timed else json.dumps({"message": f"hangs: {told[-1]}"})
        elif line.startswith(END):
            said = line
        else:
            told.append((line, time.monotonic()))
            seen[line] += 1
            if kill and is_timed and line == kill.activity and seen[line] == kill.beginning:
                time.sleep(kill.after_s)
                os.kill(child, signal.SIGKILL)
    ends = [moment for _, moment in told[1:]] + [time.monotonic()]
    return [(name, end - moment) for (name, moment), end in zip(told, ends, strict=True)], said


def half_readable(folder: Path) -> list[str]:
    """The checkpoints with a name that cannot be read as they were saved."""
    found = []
    for path in list_checkpoints(folder):
        try:
            card = read_card(path)
            assert card, path
            require_files(path, card)
            read_state(path, step=card.step)
        except (AssertionError, GlmtuneError) as err:
            found.append(f"{path.name}: {err}")
    return found


def go_on(settings: Any, folder: Path) -> None:
    """Begin the run, or go on with it where there is a checkpoint."""
    train(settings, resume=bool(list_checkpoints(folder)), quiet=True)


def warm_up(work: Path) -> None:
    """Train once in this process: what a run loads on its way, its forks have loaded then."""
    torch.set_num_threads(1)  # a pool of threads does not live on in a fork
    for module, name in DRAWN:
        setattr(module, name, BLANKS.get(name, lambda *_, **__: None))
    train(recipe(work, work / "warm", ["method=lora", "train.steps=1", *QUIET]), quiet=True)


def draw_kill(draw: random.Random, whole: Ended) -> Kill:
    """Draw when to kill a run, of which `whole` is one that nobody killed."""
    activity = draw.choice(("", "starting", "saving", "saving", "evaluating"))
    if not activity:
        return Kill(at=draw.randint(1, max(1, whole.changes // 2)))
    if activity == "starting":
        return Kill(after_s=draw.random() * sum(seconds for _, seconds in whole.told) / 2)
    times = [seconds for name, seconds in whole.told if name == activity]
    return Kill(0, activity, draw.randint(1, 2), after_s=draw.random() * sum(times) / len(times))


def crash(work: Path, methods: list[str], numbers: list[int], kills: int, seed: int) -> dict[str, Any]:
    """Kill so often; return the figures."""
    draw, tally, since = random.Random(seed), Tally(), time.monotonic()
    tiny_folder(work / "model", hidden_size=16, ffn_hidden_size=32)
    warm_up(work)
    words = {part[0].removeprefix("method="): [*part, *QUIET] for part in METHODS}
    kinds = [(name, number) for number in numbers for name in methods]
    whole: dict[tuple[str, int], tuple[Ended, Any]] = {}
    for name, number in kinds:
        settings = recipe(work, work / f"whole-{name}-{number}", words[name])
        ended = end_in(work, lambda settings=settings: train(settings, quiet=True), number, draw, None)
        assert ended.status == 0, ended
        whole[name, number] = ended, left(work / f"whole-{name}-{number}")
    while tally.kills.total() < kills:
        name, number = kind = kinds[tally.runs % len(kinds)]
        most = min(MOST_KILLS, kills - tally.kills.total())
        settings, (ended, expected) = recipe(work, work / "killed", words[name]), whole[kind]
        found = killed_run(work, settings, number, draw, tally, ended, most)
        tally.odd += [
            f"{name}, {number} processes: {key}: {found.get(key)}, not {expected.get(key)}"
            for key in {**expected, **found}
            if found.get(key) != expected.get(key)
        ]
        tally.runs += 1
        told = f"{tally.kills.total()} kills, {tally.runs} runs, {len(tally.odd)} odd"
        print(f"{time.monotonic() - since:.0f} s: {told}", file=sys.stderr)
    return {
        "kills": tally.kills.total(),
        "runs": tally.runs,
        "methods": methods,
        "kills_by_processes": {str(number): count for number, count in sorted(tally.kills.items())},
        "kills_during": dict(tally.during.most_common()),
        "checkpoints_left_half_written": tally.half_written,
        "seed": seed,
        "seconds": round(time.monotonic() - since),
        "odd": tally.odd,
    }


def killed_run(
    work: Path, settings: Any, number: int, draw: random.Random, tally: Tally, whole: Ended, most: int
) -> dict[str, Any]:
    """Kill a run and go on with it until it has come to its end; return all that it has left."""
    folder, done = settings.output, 0
    shutil.rmtree(folder, ignore_errors=True)
    while True:
        kill = draw_kill(draw, whole) if done < most else None
        ended = end_in(work, lambda: go_on(settings, folder), number, draw, kill)
        if ended.status != KILLED or ended.message:
            return {"error": ended.message or ended} if ended.status else left(folder)
        done += 1
        tally.kills[number] += 1
        activity = ended.told[-1][0]
        is_begun = bool(list_checkpoints(folder))
        tally.during["resuming" if activity == "starting" and is_begun else activity] += 1
        tally.half_written += any(is_partial(path) for path in (folder / "checkpoints").glob("*"))
        tally.odd += [f"{settings.method.name}: {problem}" for problem in half_readable(folder)]
        if not is_begun:  # as the hint of a run without a checkpoint says
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = [part[0].removeprefix("method=") for part in METHODS]
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--method", choices=known)
    parser.add_argument("--processes", type=int, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    methods = [given.method] if given.method else known
    numbers = [given.processes] if given.processes else [1, 2]
    with tempfile.TemporaryDirectory() as work:
        found = crash(Path(work), methods, numbers, given.kills, given.seed)
    print(json.dumps(found, ensure_ascii=False))
    sys.exit(bool(found["odd"]))


if __name__ == "__main__":
    main()
