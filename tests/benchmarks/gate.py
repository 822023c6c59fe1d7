"""Whether a ratio fell by a fifth against the recorded one: by hand, and before a release. On a quiet machine.

python tests/benchmarks/gate.py [--record] [arguments of reach.py]

Runs `reach.py` and compares each share of the limit with `recorded.json` beside this file; `--record` writes it anew.
Ratios and no times: another machine is faster or slower in its limits as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RECORDED = HERE / "recorded.json"
ALLOWED = 0.8


def fallen(recorded: dict[str, float], found: dict[str, float]) -> list[str]:
    """A sentence for every ratio that fell by more than a fifth, or that is missing."""
    sentences = []
    for what, before in recorded.items():
        now = found.get(what)
        if now is None:
            sentences.append(f"{what}: not measured; the same arguments as when it was recorded?")
        elif now < ALLOWED * before:
            sentences.append(f"{what}: {now:.2f} where {before:.2f} was recorded")
    return sentences


def main() -> int:
    """Exit status 1 where something fell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep these ratios as the ones to hold")
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="another file than recorded.json")
    options, rest = parser.parse_known_args()
    if not options.record and not options.recorded.is_file():
        print(f"{options.recorded} is not there yet: run this with --record on a quiet machine")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        found_at = Path(folder) / "found.json"
        subprocess.run([sys.executable, HERE / "reach.py", *rest, "--json", found_at], check=True)
        found = json.loads(found_at.read_text())
    if options.record:
        options.recorded.write_text(json.dumps(found, indent=1) + "\n")
        print(f"recorded in {options.recorded}")
        return 0
    sentences = fallen(json.loads(options.recorded.read_text()), found)
    print("\n".join(sentences) or "nothing fell by a fifth")
    return bool(sentences)


if __name__ == "__main__":
    sys.exit(main())
