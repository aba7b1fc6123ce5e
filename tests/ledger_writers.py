"""Writers of one ledger that are killed at random: `python ledger_writers.py WHERE KILLS SEED`.

Two writers add edits in a loop and note each on a pipe once it has been added. Both are killed with SIGKILL, after a
random number of edits and a random time, and the next two begin. What was noted has to be in the ledger in the end, and
what was not noted may be there at most once for each kill: the edit in flight.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

from instructedit.ledger.ledger import Ledger
from instructedit.ledger.tables import State
from ledger_edits import new_edit

READY = b"ready"
#: Share of rounds in which the writers may be killed while they open the ledger.
EARLY = 0.2
#: In the others, edits that are noted before, at most; however slow the machine is, the writers come to write.
MOST_NOTED = 4
#: Seconds after which a writer is then killed, at most; adding an edit takes some milliseconds.
LONGEST = 0.05


def write(where: str, name: str, pipe: int) -> None:
    with Ledger(where, author=name) as ledger:
        os.write(pipe, READY + b"\n")
        for number in range(1_000_000):
            subject = f"{name}-{number}"
            ledger.add([new_edit(subject, scale=float(number % 5))])
            if number % 3 == 2:
                ledger.set_state([ledger.edits()[-1].id], State.DISABLED)
            os.write(pipe, f"{subject}\n".encode())


def start(where: str, name: str, pipe: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            write(where, name, pipe)
        finally:
            os._exit(1)
    return child


def hear(source: int) -> bytes:
    """What has been written to the pipe since the last time."""
    heard = b""
    while True:
        try:
            heard += os.read(source, 65536)
        except BlockingIOError:
            return heard


def main(where: str, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    source, pipe = os.pipe()
    with Ledger(where, author="first") as ledger:  # what is read and compiled once, the writers inherit
        ledger.add([new_edit("first")])
        ledger.add([new_edit("second")])
    killed, left = 0, 0
    noted: list[str] = []
    os.set_blocking(source, False)
    while killed < kills:
        children = [start(where, f"{killed}-{index}", pipe) for index in range(2)]
        heard, waits, edits = b"", rng.random() >= EARLY, rng.randint(0, MOST_NOTED)
        while waits and (heard.split().count(READY) < 2 or len(heard.split()) < 2 + edits):
            time.sleep(0.005)
            heard += hear(source)
        for child in rng.sample(children, 2):
            time.sleep(rng.uniform(0.0, LONGEST))
            os.kill(child, signal.SIGKILL)
            killed += 1
        for child in children:
            _, status = os.waitpid(child, 0)
            left += not os.WIFSIGNALED(status)
        noted += [name.decode() for name in (heard + hear(source)).split() if name != READY]
    with Ledger(where) as ledger:
        subjects = [entry.request.subject for entry in ledger.edits()]
        result = {
            "killed": killed,
            "ended by themselves": left,
            "noted": len(noted),
            "lost": sorted(set(noted) - set(subjects)),
            "in flight": len(set(subjects) - set(noted) - {"first", "second"}),
            "twice": len(subjects) - len(set(subjects)),
            "problems": ledger.problems(),
        }
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
