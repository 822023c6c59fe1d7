"""What 10,000 lines of a ledger cost before an accountant sees them: chain, entries and signatures, in CPU time.

    python tests/benchmarks/bench_ledger.py [--lines 10000]

In turns with `held`, which `fedseg ledger show` and `verify` begin with: as many Ed25519 verifications alone. The ratio
holds on other machines; above `LIMIT` the exit status is 1.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fedseg.exposure import held
from fedseg.ledger.chain import START, next_line, read
from fedseg.ledger.entries import MetricsRelease, NoisySteps
from secagg import SigningKey
from secagg.keys import verify

LIMIT = 3.0
"""`held` over its signatures alone: chain and entries are read once beside them."""


def main() -> None:
    """Print CPU seconds and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=10_000)
    count = max(parser.parse_args().lines, 1000)  # of fewer the verdicts are remembered from one turn to the next
    key = SigningKey.generate()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        written(path, key, count)
        signed = [(number.to_bytes(32, "big"), key.sign(number.to_bytes(32, "big"))) for number in range(count)]
        whole, parsed, alone = [], [], []
        for _ in range(3):
            whole.append(seconds(lambda: held(path)))
            parsed.append(seconds(lambda: read(path)))
            alone.append(seconds(lambda: [verify(key.verify_key, *each) for each in signed]))
    ratio = min(whole) / min(alone)
    print(
        f"{count} lines: held {min(whole):.2f} s, of it read {min(parsed):.2f} s; signatures alone {min(alone):.2f} s"
    )
    print(f"ratio {ratio:.2f}, limit {LIMIT}")
    sys.exit(ratio > LIMIT)


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def written(path: Path, key: SigningKey, count: int) -> None:
    """A ledger of one run in which every second line releases metrics."""
    previous = START
    with path.open("wb") as file:
        for number in range(count):
            about = {
                "study_hash": "ab" * 32,
                "site": "site-a",
                "training_run": "bench",
                "round_number": number // 2 + 1,
                "unit": "patient",
            }
            noise = {"sample_rate": 0.01, "noise_multiplier": 2.0, "clip_norm": 1.0, "denominator": 10.0, "steps": 5}
            entry = MetricsRelease(**about) if number % 2 else NoisySteps(**about, **noise, generator="os")
            line, data = next_line(previous, entry, key)
            file.write(data)
            previous = line.event_id


if __name__ == "__main__":
    main()
