"""`--nproc N`: runs a verb in several processes of this machine, as if typed once.

Not through torch's launcher: that takes seconds to load, ends processes that still save after 30 s, and
returns 1 whatever the failing process returned. `torchrun` and `accelerate launch` start the same processes.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import IO

import click

from glmtune.errors import ConfigError, TrainingError, first_line
from glmtune.log import LAUNCHED, is_main_process

PEER_ENDED = 4
"""Exit code of a process that ended because another one did; never that of the command."""
GRACE_S = 5.0
"""Seconds that the other processes have to end by themselves after one has failed."""
_POLL_S = 0.05
_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_LOST = ("by peer", "Timed out", "timed out", "Broken pipe")
"""Parts of torch's errors about another process: its class is RuntimeError, and no narrower one."""

nproc_option = partial(
    click.option,
    "--nproc",
    type=click.IntRange(min=1),
    metavar="N",
    help="Share the work over N processes of this machine, each with a card of its own if there are cards.",
)
"""The option of verbs that can run in several processes."""


def is_to_launch(number: int | None) -> bool:
    """Return True if this is the command that was typed, and it asks for several processes."""
    return number is not None and number > 1 and LAUNCHED not in os.environ


def run_in_processes(number: int) -> None:
    """Run this command in so many processes; exit with the code of the first that failed.

    Raises `ConfigError` inside processes that were started together already.
    """
    if "WORLD_SIZE" in os.environ:
        raise ConfigError(
            f"--nproc: {number}, but another program has started {os.environ['WORLD_SIZE']} processes",
            hint="type the command without it: torchrun's or accelerate's own option says how many",
        )
    said = [tempfile.TemporaryFile() for _ in range(1, number)]  # noqa: SIM115  # open to the end
    ranks = _start([None, *said])
    with _passing_signals_on(ranks):
        failed = _wait(ranks)
    if failed is None:
        return
    rank, code = failed
    if rank:  # the first process has spoken for itself
        said[rank - 1].seek(0)
        click.echo(said[rank - 1].read().decode("utf-8", "replace"), err=True, nl=False)
    if code < 0:
        names = {each.value: each.name for each in signal.Signals}  # a realtime signal has none
        name = names.get(-code, f"signal {-code}")
        of_memory = "the system's log names a process that it ended for its memory"
        click.echo(f"error: process {rank} was ended by {name}", err=True)
        click.echo(f"hint: {of_memory if name == 'SIGKILL' else 'another program sent it'}", err=True)
    sys.exit(128 - code if code < 0 else 2 if code == PEER_ENDED else code)


def _start(said: Sequence[IO[bytes] | None]) -> list[subprocess.Popen[bytes]]:
    """Start a process for each file of `said`, which takes what it says on stderr; None: the terminal."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # torch needs the number before it listens; another program could still take it meanwhile
        port = str(probe.getsockname()[1])
    number = len(said)
    threads = str(max(1, (os.cpu_count() or 1) // number))  # else each starts as many as there are cores
    world = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_PORT": port}
    world |= {"MASTER_ADDR": "127.0.0.1", LAUNCHED: str(os.getpid())}
    # the user's own OMP_NUM_THREADS goes before ours, the world before an outer one
    shared = {"OMP_NUM_THREADS": threads, **os.environ, **world}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "glmtune", *sys.argv[1:]],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            # one reader and one voice: the first process has the terminal
            stdin=subprocess.DEVNULL if rank else None,
            stdout=subprocess.DEVNULL if rank else None,
            stderr=file,
        )
        for rank, file in enumerate(said)
    ]


@contextmanager
def _passing_signals_on(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM go to all processes, each of which saves first; this one waits for them."""

    def pass_on(number: int, _: FrameType | None) -> None:
        # of a terminal's Ctrl-C they have heard already: two signals within a second count as one
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Wait for all processes; return number and exit code of the one that failed, None if none has.

    After a failure the others have `GRACE_S` seconds, unless all were asked to end and save.
    """
    failed: dict[int, int] = {}
    deadline = float("inf")
    while left := [rank for rank in ranks if rank.poll() is None]:
        failed |= {i: rank.returncode for i, rank in enumerate(ranks) if rank.returncode and i not in failed}
        if deadline == float("inf") and set(failed.values()) - {*_INTERRUPTED}:
            deadline = time.monotonic() + GRACE_S
        if time.monotonic() > deadline:
            for rank in left:
                rank.kill()  # which ends a stopped one too
                rank.wait()
            break
        time.sleep(_POLL_S)
    else:
        failed |= {i: rank.returncode for i, rank in enumerate(ranks) if rank.returncode and i not in failed}
    # the first, but not one that ended because of another
    return min(failed.items(), key=lambda item: item[1] == PEER_ENDED, default=None)


@contextmanager
def naming_ended_process() -> Iterator[None]:
    """Raise `TrainingError` in place of torch's error if another process has ended or does not come.

    A process that gives no sign of life ends this one.
    """
    from glmtune.training.heartbeat import listening, whereabouts

    try:
        with listening(_end_at_once):
            yield
    except RuntimeError as err:
        if not any(text in str(err) for text in _LOST):
            raise
        is_gone = "imed out" not in str(err)
        lost = TrainingError(
            "another process of this run has ended"
            if is_gone
            else f"the processes have waited too long for one another: {whereabouts()}",
            hint="it says why; without a word, it was killed"
            if is_gone
            else "one does something else than the others, or is slower by more than distributed.timeout_s; "
            f"torch says: {first_line(err)}",
        )
        lost.exit_code = PEER_ENDED
        raise lost from err


def _end_at_once(sentence: str) -> None:
    """End this process, whose main thread may wait within torch for ever, with an error."""
    # one voice: the first process's; of the first process's own silence that of the others
    if is_main_process() or sentence.startswith("process 0 "):
        click.echo(f"error: {sentence}, and the others wait for it", err=True)
        click.echo(
            "hint: it was stopped, or its machine is gone; --resume goes on from the last checkpoint",
            err=True,
        )
    sys.stderr.flush()
    os._exit(PEER_ENDED)
