"""What a site checks before it takes part in a round or takes a model: it believes the coordinator nothing."""

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import RoundFailedError
from fedseg.site.party import Party
from fedseg.update import adopt, model_hash
from secagg import OpenRound, ProtocolError, open_round
from secagg.messages import Receipt, RoundStart


class Opening(Party):
    """A site that holds round starts and models against what it knows itself."""

    def _verified(self, start: RoundStart, vector: NDArray[np.float32]) -> OpenRound:
        """The attempt that a round start announces, after this site's own checks.

        Raises:
            ExposureError: a round keeps this site out.
            RoundFailedError: the coordinator lies, or has another study.
        """
        try:
            return open_round(
                self.policy,
                self.federation.pinned,
                self.federation.training_run,
                start,
                self.store,
                model_hash=model_hash(vector),
                task_hash=self.study.hash(),
                private=self.study.trust.each_update_private,
            )
        except ProtocolError as error:
            told = "; is the study file the same at every party?" if error.check == "C-23" else ""
            raise RoundFailedError(f"the coordinator's round start was refused: {error}{told}") from error

    def _adopt(self, start: RoundStart, vector: NDArray[np.float32]) -> None:
        """Take the coordinator's model, if it is the one it signed and, as far as this site knows, the right one."""
        if vector.shape != self.state.shape:
            raise RoundFailedError("the coordinator sent a model of another length than the study's")
        self.following.check(start)
        self.state = vector
        adopt(self.model, vector)
        self.completed = len(start.missed)

    def _take_model(self, start: RoundStart, vector: NDArray[np.float32]) -> None:
        """A model that is signed like any other, outside a round."""
        start.verify(self.federation.server_key, "C-01")
        if start.model_hash != model_hash(vector):
            raise RoundFailedError("the coordinator sent another model than its signed round start names")
        self._adopt(start, vector)

    def _unshown(self) -> Receipt | None:
        """The last finished round, where only the coordinator says that it was; its transcript shows a quorum.

        On a round that it invented a coordinator could build any model, and sum the same updates again.
        """
        run = self.federation.training_run
        with self.store.transaction() as marks:
            last = marks.receipt(self.session, run, marks.head(self.session, run)[0])
            known = last is None or marks.replayed(last.round_id) or marks.accepted(last.round_id)
        return None if known or self.study.trust.each_update_private else last
