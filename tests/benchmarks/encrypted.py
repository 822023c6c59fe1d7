"""What one encrypted question costs: seconds, CPU seconds of all three parties, bytes between them.

    build/encrypted/bin/python tests/benchmarks/encrypted.py [--bytes]

All three run on this computer. With `--bytes` in a network namespace of its own (`unshare -n`, as root), whose loopback
counts what they send, TLS and headers included.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import torch

from fedseg.encrypted.checking import agreement_of, made, three_here
from fedseg.encrypted.tracing import program_of
from fedseg.models import build_model
from tests.support.tiny import study_with

CASES = [("cnn-small", 64, 1), ("unet-small", 64, 1), ("unet", 64, 1), ("resnet18", 224, 1), ("resnet18", 224, 2)]
TICKS = os.sysconf("SC_CLK_TCK")


def cpu() -> float:
    """CPU seconds of this process's children that still run: the three engines."""
    found = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found += (int(fields[11]) + int(fields[12])) / TICKS
    return found


def sent() -> int:
    """Bytes that the loopback has carried."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[1])


def measured(network: str, size: int, count: int) -> dict[str, object]:
    """A question that is prepared, and one that is not."""
    study = study_with(network, size, "[]")
    model = build_model(study).eval()
    program, weights = program_of(model, study)
    began, carried = time.perf_counter(), sent()
    told: dict[str, object] = {"network": network, "size": size, "pictures": count}
    told["parameters"] = sum(values.size for values in weights.values())
    with three_here(program, weights) as session:
        told["session seconds"], told["session MB"] = round(time.perf_counter() - began, 1), (sent() - carried) / 1e6
        for name in ("first", "again"):
            pictures = made(program, count, 0)
            began, used, carried = time.perf_counter(), cpu(), sent()
            answer = session.ask(pictures)
            told |= {f"{name} seconds": round(time.perf_counter() - began, 2), f"{name} CPU": round(cpu() - used, 2)}
            told[f"{name} MB"] = round((sent() - carried) / 1e6, 1)
        session.end()
    with torch.inference_mode():
        plain = model(torch.from_numpy(pictures)).numpy()
    found = agreement_of(answer, plain)
    return told | {"apart": found.apart, "largest": found.largest, "alike": found.alike, "places": found.places}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    if given.bytes:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for case in CASES:
        if given.only in case[0]:
            print(json.dumps({**measured(*case), "load": os.getloadavg()[0]}), flush=True)
