"""Checks the model of what lies between the rounds with spin: the protocol holds, and each defence is needed.

Needs spin and gcc (`make model` installs spin on Debian). Prints one line per case; exits with 1 where a case is not as
expected. `python check.py NAME ...` runs the cases with these names and shows the attack that spin found, step by step.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MODEL = "cross_round.pml"
MEGABYTES = 3000
WHOLE, SAMPLE = 300, 20
"""Seconds of work, not by the clock, that a whole search and a random one may take."""
SEEDS = 6
NEXT, NEW_RUN = "-DSECOND=2", "-DSECOND=3"


@dataclass(frozen=True)
class Case:
    """One variant of the model, and whether spin must find an attack on it."""

    flags: str
    attack: bool
    model: str = MODEL
    sampled: bool = False  # three round starts are too many to visit all: random depth-first searches in a bit table


CASES = {
    "protocol, n=4": Case("-DN=4 -DK=2 -DE=1 -DSORT", False),
    "protocol, n=5": Case("-DN=5 -DK=2 -DE=2 -DSORT", False),
    "private, n=4": Case("-DN=4 -DK=2 -DPRIVATE -DSORT", False),
    "t - c operators accept": Case(f"-DN=4 -DK=2 -DE=2 -DLEAST=2 {NEXT}", True),
    "claims in U1 not looked at (C-26)": Case("-DN=4 -DK=2 -DE=1 -DNO_C26", True),
    "marks per run": Case(f"-DN=4 -DK=2 -DMARKS_PER_RUN {NEW_RUN}", True),
    "live slot not looked at before the release (C-24)": Case("-DN=4 -DK=2 -DNO_LIVE_AT_RELEASE", True),
    "replay without a transcript": Case("-DN=4 -DK=2 -DREPLAY_IS_GRANTED", True),
    "replay after the join counts": Case(f"-DN=4 -DK=2 -DE=1 -DREPLAY_ANY_TIME {NEXT}", True),
    "claim read before the join": Case(f"-DN=4 -DK=2 -DE=1 -DCLAIM_BEFORE_JOIN {NEXT}", True),
    "a run starts over on the same model": Case(f"-DN=4 -DK=2 -DNO_MODEL_CHECK {NEW_RUN}", True),
    "store in memory": Case(f"-DN=4 -DK=2 -DSTORE_IN_MEMORY -DRESTARTS=2 {NEXT}", True),
    "private, contribution not marked (C-14)": Case("-DN=4 -DK=2 -DPRIVATE -DNO_C14 -DSECOND=1", True),
    "transcript clears by run name": Case(
        "-DN=4 -DK=3 -DREPLAY_BY_RUN_NAME -DSECOND=6 -DTHIRD=2 -DRESTARTS=0", True, sampled=True
    ),
    "acceptance is a switch": Case(
        "-DN=4 -DK=3 -DE=1 -DACCEPTANCE_IS_A_SWITCH -DSECOND=2 -DTHIRD=2 -DRESTARTS=0", True, sampled=True
    ),
    "acceptance stays": Case(
        "-DN=4 -DK=3 -DE=1 -DACCEPTANCE_STAYS -DSECOND=2 -DTHIRD=2 -DRESTARTS=0", True, sampled=True
    ),
    "superseded or settled by another run": Case(
        "-DN=4 -DK=3 -DE=1 -DSUPERSEDED_ANYWHERE -DSECOND=4 -DTHIRD=2 -DRESTARTS=0", True, sampled=True
    ),
    # One of two checks on the same thing: the other one holds alone.
    "live slot not looked at before contributing": Case("-DN=4 -DK=2 -DE=1 -DSORT -DNO_LIVE_AT_CONTRIBUTE", False),
    "contributing looks at nothing again": Case("-DN=4 -DK=2 -DE=1 -DSORT -DNO_RECHECK -DRESTARTS=0", False),
    "open round not looked at before the release": Case("-DN=4 -DK=2 -DE=1 -DSORT -DNO_C05_AT_RELEASE", False),
    "not private, contribution not marked (C-14)": Case("-DN=4 -DK=2 -DE=1 -DSORT -DNO_C14", False),
}

SECOND_OPINION = ("protocol, n=4", "marks per run", "a run starts over on the same model")
"""What the audit asks of spin, beside its own explorer."""

UNMASKING = {
    "protocol, n=4": Case("", False, "unmasking.pml"),
    "a client attests two sets": Case("-DATTESTS_TWICE", True, "unmasking.pml"),
    "shares without a quorum": Case("-DNO_QUORUM", True, "unmasking.pml"),
    "a client is in two rosters": Case("-DTWO_ROSTERS", True, "unmasking.pml"),
    "2t <= n + c": Case("-DT=2", True, "unmasking.pml"),
}
"""Of one round's end."""


def installed() -> bool:
    """Whether spin and gcc are there."""
    return bool(shutil.which("spin") and shutil.which("gcc"))


def check(case: Case) -> tuple[bool | None, int, str]:
    """Whether spin finds an attack (None: it did not come to an end), the states it stored, and the attack as text."""
    flags = case.flags.split()
    with tempfile.TemporaryDirectory() as folder:

        def run(*command: str, seconds: int | None = None) -> str:
            """What a command prints; it is killed after so many seconds of work."""
            limit = ("prlimit", f"--cpu={seconds}") if seconds else ()
            return subprocess.run((*limit, *command), cwd=folder, capture_output=True, text=True, check=False).stdout

        shutil.copy(Path(__file__).parent / case.model, folder)
        run("spin", "-a", *flags, case.model)
        kind = ("-DBITSTATE", "-DT_RAND", "-DP_RAND") if case.sampled else ("-DCOLLAPSE", f"-DMEMLIM={MEGABYTES}")
        run("gcc", "-O1", "-w", "-DSAFETY", *kind, "-o", "pan", "pan.c")
        told = ""
        for seed in range(1, SEEDS + 1) if case.sampled else (0,):
            if case.sampled:  # what is killed at its limit says nothing, and the next seed is tried
                told = run("./pan", "-n", "-m400", "-w27", f"-RS{seed}", seconds=SAMPLE) or told
            else:
                told = run("./pan", "-n", "-m1000000", "-w22", seconds=WHOLE)
            if told and "errors: 0" not in told:
                break
        stored = re.search(r"(\d+) states, stored", told)
        found = re.search(r"errors: (\d+)", told)
        if stored is None or found is None or ("Search not completed" in told and found[1] == "0"):
            return None, 0, told
        trace = run("spin", "-t", *flags, case.model) if found[1] != "0" else ""
        return found[1] != "0", int(stored[1]), trace.split("spin: ")[0]


def main(names: list[str]) -> int:
    """Run the cases; 1 where one is not as expected, 2 where spin or gcc is missing."""
    if not installed():
        print("The model is checked with spin and gcc; install both (Debian: apt-get install spin gcc).")
        return 2
    failed = 0
    every = CASES | {f"unmasking: {name}": case for name, case in UNMASKING.items()}
    for name in names or every:
        case = every[name]
        attack, states, trace = check(case)
        outcome = {True: "attack found", False: "holds", None: "NOT DECIDED"}[attack]
        wrong = attack is not case.attack
        failed += wrong
        print(f"{'WRONG ' if wrong else 'ok    '} {name:52} {outcome:13} {states:>9} states", flush=True)
        if names and trace:
            print(trace)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
