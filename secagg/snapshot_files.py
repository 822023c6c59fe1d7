"""A driver between two processes: what it holds lies in one sealed file, which is gone before anything of it is used.

For systems that run one process a message. Specification: docs/spec.md, section "Sessions on a disk".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secagg.driver import ClientAction, ClientDriver
from secagg.writing import abandoned, erase, write_whole


@contextmanager
def kept_in(path: Path, driver: ClientDriver) -> Iterator[list[ClientAction]]:
    """Resume a driver from its file, and keep it there again where the block ends well.

    Send what the driver said after the block, never within it: only then was the answer written down before it left. A
    block that fails loses the round, and nothing is answered twice; so may one of two processes at the same time.

    Args:
        path: of one client in one run; readable by its owner only. There is no file while no attempt is under way.
        driver: fresh, made as in every other process.

    Yields:
        Actions to add to: `Failed` where the file cannot be used, so that the attempt is lost.

    Raises:
        OSError: it cannot be read, written or removed.
    """
    sealed = path.read_bytes() if path.exists() else b""
    actions = driver.resume(sealed) if sealed else []
    if driver.live or (path.exists() and path.read_bytes() == sealed):  # else another process has written since
        erase(path)
    yield actions
    if sealed := driver.suspend():
        for beside in abandoned(path):  # its mark is gone from the store, but the secrets in it open for good
            erase(beside)
        write_whole(path, sealed)
