"""First lines of both processes: confine, say so, then do the work."""

# Values here are whatever a program makes of them:
# pyright: basic

import os

from . import channel, checker, confine, worker

READY = b"ready"


def run(job: dict) -> None:
    """Does what `job` says, until the process it works with is gone.

    Args:
        job: `confinement` (for `confine.confine`), `role` and the role's own entries.
    """
    silent = os.open(os.devnull, os.O_RDWR)
    confine.confine(job["confinement"])
    # Until here errors went to the starter; from here on nobody reads what is printed.
    for standard in range(3):
        os.dup2(silent, standard)
    if job["role"] == "program":
        channel.send(job["replies"], READY)
        worker.serve(job["source"], job["requests"], job["replies"])
        return
    verdict = job["verdict"]
    if channel.receive(job["replies"], len(READY)) != READY:
        checker.report(verdict, "sandbox error", "the process for the program did not start")
    channel.send(verdict, READY)
    outcome, message = checker.check(job, job["requests"], job["replies"])
    checker.report(verdict, outcome, message)
