"""What a coordinator asks of its memory, in a process of its own."""

import platform
import subprocess
import sys

import pytest

MESSAGES = """
import sys
from pathlib import Path
from secagg.service.memory import tidy

def taken() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))

if sys.argv[1] == "tidy":
    tidy()
first = b"x" * (8 << 20)
del first  # from here on glibc keeps such blocks among the small ones
before = taken()
messages = [(b"x" * 2_000_000, b"y" * (200_000 + number)) for number in range(40)]
kept = [small for _, small in messages]
del messages
print(taken() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(("how", "stays"), [("tidy", range(20)), ("as it is", range(60, 100))])
def test_the_memory_of_a_message_goes_back_to_the_system_with_it(how, stays):
    """Of 40 messages of 2 MB, each before one of 200 KB that stays; in megabytes."""
    told = subprocess.run([sys.executable, "-c", MESSAGES, how], capture_output=True, text=True, check=True)
    assert int(told.stdout) in stays
