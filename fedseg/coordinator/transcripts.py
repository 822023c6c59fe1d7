"""The public transcripts that a coordinator keeps of its rounds: for auditors, and for sites without privacy (C-05)."""

from pathlib import Path

from fedseg.errors import ConfigError
from secagg import Policy, SigningKey
from secagg.context import RoundContext
from secagg.messages import Receipt
from secagg.policy import PinnedRoster
from secagg.transcript_files import Recorder
from secagg.writing import PRIVATE, PRIVATE_FOLDER

FOLDER = "transcripts"


class Transcripts:
    """One run's folder of them.

    Args:
        run: the run folder.
        keep: masked inputs "whole", as "hashes", or no transcripts at all ("none").
        replayed: whether sites replay every round before the next, which takes whole ones.
        policy, pinned, key: what every transcript is of, and who signs it.

    Raises:
        ConfigError: sites could not replay what is kept.
    """

    def __init__(
        self, run: Path, keep: str, *, replayed: bool, policy: Policy, pinned: PinnedRoster, key: SigningKey
    ) -> None:
        if keep != "whole" and replayed:
            raise ConfigError("where an update is not private alone, every site replays whole transcripts: keep them")
        self._folder, self._keep = run / FOLDER, keep
        self._policy, self._pinned, self._key = policy, pinned, key

    def recorder(self, context: RoundContext) -> Recorder | None:
        """What writes down an attempt; None where nothing is kept."""
        if self._keep == "none":
            return None
        path = self._folder / f"{context.round_number:04d}-{context.attempt}.transcript"
        path.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
        return Recorder(path, self._policy, self._pinned, context, self._keep == "whole", self._key)

    def publish(self, recorder: Recorder, receipt: Receipt | None) -> str:
        """Give a recorded attempt its name; returns a sentence where that failed, for the sum is there all the same."""
        try:
            path = recorder.publish()
            if path is not None:
                path.chmod(PRIVATE)  # a run folder is its owner's, who hands transcripts to auditors
            if path is not None and receipt is not None:  # found by its identifier, by a coordinator of a later run too
                path.replace(path.with_stem(f"{path.stem}-{_short(receipt.round_id.hex())}"))
        except OSError as error:
            return f"the transcript of this round could not be written: {error}"
        return ""

    def find(self, round_id: str) -> Path | None:
        """The transcript of a round, in this run's folder or in one beside it."""
        runs = self._folder.parent.parent
        found = sorted(runs.glob(f"*/{FOLDER}/*-{_short(round_id)}.transcript"))
        return found[-1] if found else None


def _short(round_id: str) -> str:
    """Of an identifier in hexadecimal, what a file name has of it."""
    return round_id[:16]
