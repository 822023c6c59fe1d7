"""The public transcripts that a coordinator keeps of its rounds: for auditors, and for members without privacy (C-05).

One file a round, found by the round's identifier. Together they keep within a quota: the oldest go first.
"""

from pathlib import Path

from secagg import Policy, SigningKey
from secagg.context import RoundContext
from secagg.errors import ConfigError
from secagg.roster import PinnedRoster
from secagg.transcript_files import Recorder
from secagg.writing import PRIVATE, PRIVATE_FOLDER

FOLDER = "transcripts"
RECORDING = "recording"
"""Beside it: what is recorded of the attempt that runs, sealed under the coordinator's key."""

QUOTA = 20 << 30
"""Bytes of all transcripts of a run, at most."""

_AT_LEAST = 2  # the last rounds, which members replay before they go on


class Kept(Recorder):
    """Writes down an attempt; whoever drives the round makes a file of it when there is room for one."""

    @property
    def stem(self) -> str:
        """The beginning of its name: round and attempt."""
        return "-".join(self.path.stem.split("-")[:2])

    def publish(self) -> "Kept":  # type: ignore[override]
        """Itself: see `Transcripts.write`."""
        return self


class Transcripts:
    """One run's folder of them.

    Args:
        folder: where they lie.
        keep: masked inputs "whole", as "hashes", or no transcripts at all ("none").
        replayed: whether members replay every round before the next, which takes whole ones.
        policy, pinned, key: what every transcript is of, and who signs it.
        quota: bytes of all of them, at most; the last two stay in any case.

    Attributes:
        begun: how the attempt is kept that runs: it goes on so, also where `keep` is another one by now.

    Raises:
        ConfigError: members could not replay what is kept.
    """

    def __init__(
        self,
        folder: Path,
        keep: str,
        *,
        replayed: bool,
        policy: Policy,
        pinned: PinnedRoster,
        key: SigningKey,
        quota: int = QUOTA,
    ) -> None:
        if keep != "whole" and replayed:
            raise ConfigError("where an update is not private alone, every site replays whole transcripts: keep them")
        self.folder, self.keep, self._quota = folder, keep, quota
        self.begun = keep
        self._recording = folder.with_name(RECORDING)
        self._policy, self._pinned, self._key = policy, pinned, key

    def begin(self) -> None:
        """An attempt begins, and is kept as this process was told."""
        self.begun = self.keep

    def recorder(self, context: RoundContext) -> Kept | None:
        """What writes down an attempt; None where nothing is kept."""
        if self.begun == "none":
            return None
        path = self._recording / f"{context.round_number:04d}-{context.attempt}.transcript"
        for folder in (self.folder, self._recording):
            folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        return Kept(path, self._policy, self._pinned, context, self.begun == "whole", self._key, durable=True)

    def write(self, kept: Kept) -> list[str]:
        """Make a transcript of a recorded attempt, and keep to the quota.

        Returns:
            Names of the transcripts that went for it.

        Raises:
            OSError: it cannot be written now; what was recorded stays, for a later call.
        """
        name = f"{kept.stem}.transcript"
        if kept.receipt is not None:  # found by its identifier, by a coordinator of a later run too
            name = f"{kept.stem}-{_short(kept.receipt.round_id.hex())}.transcript"
        kept.path = self.folder / name
        path = Recorder.publish(kept)
        if path is None:
            return []
        path.chmod(PRIVATE)  # a run's folder is its owner's, who hands transcripts to auditors
        return self._rotated()

    def tidy(self) -> None:
        """Remove what attempts recorded that are over; none runs."""
        for left in self._recording.glob(".*.recording"):
            left.unlink()

    def _rotated(self) -> list[str]:
        there = sorted(self.folder.glob("*.transcript"))
        sizes = {path: path.stat().st_size for path in there}
        gone: list[str] = []
        for path in there[:-_AT_LEAST]:
            if sum(sizes.values()) <= self._quota:
                break
            path.unlink()
            gone.append(path.name)
            del sizes[path]
        return gone

    def find(self, round_id: str) -> Path | None:
        """The transcript of a round, in this run's folder or in that of a run beside it."""
        runs, ends = self.folder.parent.parent, f"-{_short(round_id)}.transcript"
        # Every pattern is remembered, compiled: this is the same one in every round.
        found = sorted(path for path in runs.glob(f"*/{FOLDER}/*.transcript") if path.name.endswith(ends))
        return found[-1] if found else None


def _short(round_id: str) -> str:
    """Of an identifier in hexadecimal, what a file name has of it."""
    return round_id[:16]
