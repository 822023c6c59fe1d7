"""Without differential privacy: the rounds that keep this member out of the next ones until settled (C-05, C-26).

A round is settled by its transcript, replayed, or by the member's operator, who accepts that it cannot be. Nobody is at
fault meanwhile.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from secagg.errors import SecAggError
from secagg.messages import Receipt
from secagg.policy import Policy
from secagg.roster import PinnedRoster
from secagg.service.dialogue import WAITED_FOR
from secagg.store import Store
from secagg.transcript import RoundReport, accept
from secagg.transcript_files import verify
from secagg.writing import write_whole

REFUSED = "refused.transcript"
"""In the state folder: the last transcript that settled nothing."""


class Exposed:
    """What a member waits for.

    Args:
        store: its marks.
        state: its state folder.
        accepting: the command with which an operator accepts these rounds, for the sentence that asks for it.

    Attributes:
        waiting: by round identifier, whether its transcript would help.
    """

    def __init__(self, store: Store, state: Path, accepting: Callable[[Iterable[bytes]], str]) -> None:
        self._store, self._state, self._accepting = store, state, accepting
        self.waiting: dict[bytes, bool] = {}
        self._again: set[bytes] = set()  # kept this member out of one attempt although they were replayed

    @property
    def unreplayed(self) -> list[str]:
        """The identifiers in hexadecimal, as `dialogue.Ready` has them."""
        return [round_id.hex() for round_id in self.waiting][:WAITED_FOR]

    def since_before(self) -> tuple[str, bytes] | None:
        """A round of an earlier process that keeps this member out (C-05): a sentence, and its identifier."""
        with self._store.transaction() as marks:
            release = marks.open_release
            if release is None or marks.accepted(release.round_id):
                return None
        said = f"[C-05] this site sent unmasking shares for {release.name} and has not replayed its transcript"
        return said, release.round_id

    def wait(self, said: str, round_ids: Iterable[bytes]) -> str:
        """Stay out until these rounds are settled; returns what to tell the operator, "" where it was said before."""
        with self._store.transaction() as marks:
            known = {round_id: marks.replayed(round_id) for round_id in round_ids if round_id not in self.waiting}
        # One that was replayed after this attempt was joined counts in the next. Where it does not even then, it was on
        # the same model in another run, and only the operator can help.
        fresh = {
            round_id: not replayed for round_id, replayed in known.items() if not replayed or round_id in self._again
        }
        self._again |= known.keys() - fresh.keys()
        self.waiting |= fresh
        if not fresh:
            return ""
        waits = "This site waits for its operator"
        if any(fresh.values()):
            waits = "This site waits for that transcript, which the coordinator or another site may have"
        asks = "An operator who accepts that risk once has to run beside this process"
        return f"{said}. {waits}. {asks}: {self._accepting(fresh)}"

    def settled(self) -> bool:
        """Whether this member waited until now, and every round has been replayed or accepted, here or beside it."""
        if not self.waiting:
            return False
        with self._store.transaction() as marks:
            self.waiting = {
                round_id: would_help
                for round_id, would_help in self.waiting.items()
                if not marks.accepted(round_id) and not (would_help and marks.replayed(round_id))
            }
        return not self.waiting

    def replay(
        self, transcript: bytes, policy: Policy, pinned: PinnedRoster, before: Callable[[Receipt], None]
    ) -> Receipt | str:
        """Recompute the sum of a round: a lying coordinator could take it again without a site.

        Args:
            transcript: whoever sent it is not believed.
            policy: the member's own.
            pinned: the member's own roster.
            before: see `replay`.

        Returns:
            The round's receipt, or a sentence on why the transcript settles nothing; it is kept then.
        """
        came = self._state / REFUSED
        write_whole(came, transcript)
        try:
            receipt = replay(self._store, policy, pinned, came, before)
        except SecAggError as error:
            return f"a transcript was refused and settles nothing: {error}; it is kept in {came}"
        came.unlink()
        return receipt


def replay(
    store: Store,
    policy: Policy,
    pinned: PinnedRoster,
    path: Path,
    before: Callable[[Receipt], None] = lambda receipt: None,
) -> Receipt:
    """Recompute the sum of a round from its transcript, under this member's own policy and roster, and mark it.

    Args:
        store: the member's marks.
        policy: the member's own.
        pinned: the member's own roster.
        path: the transcript; whoever sent it is not believed.
        before: takes the receipt before the round counts as replayed, and may do so again: a process that was killed
            in between is sent the transcript once more.

    Returns:
        The round's receipt.

    Raises:
        SecAggError: the transcript does not hold, is of another federation, or does not fit the member's log; nothing
            was marked.
    """
    receipts: list[Receipt] = []

    def follow(rounds: tuple[RoundReport, ...]) -> None:
        """Tell the one receipt before the round counts."""
        receipts.extend(report.receipt for report in rounds if report.receipt is not None)
        (receipt,) = receipts
        before(receipt)

    accept(verify([path], policy, pinned), store, follow)
    return receipts[0]
