"""A site as anybody writes it, for NVFlare; beside its job, because NVFlare ships the file of its class."""

import os
import signal

import numpy as np
from nvflare.collab import collab

from secagg.nvflare import SecAggSite


class Site(SecAggSite):
    """Trains a line; the site that `victim` names dies in its first training, with its process."""

    def __init__(self, folder: str = "", victim: str = "", kill: bool = False) -> None:
        super().__init__(folder)
        self.victim, self.kill = victim, kill

    def train(self, model):
        """See `SecAggSite.train`."""
        site = int(collab.site_name.rpartition("-")[2])
        if collab.site_name == self.victim:
            if self.kill:
                os.kill(os.getppid(), signal.SIGKILL)  # its client too, which would report it
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this site lost its power")
        change = np.random.default_rng(site).uniform(-0.05, 0.05, (3, 4)).astype(np.float32)
        arrays = {"weight": model["weight"] * np.float32(0.9) + change, "batches": model["batches"] + 3}
        return arrays, 100 * site, {"loss": 0.5 + site / 10}
