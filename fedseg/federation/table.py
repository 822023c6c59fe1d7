"""Every algorithm by its name; a new one is one more file and one more line here."""

from fedseg.federation.algorithm import Algorithm
from fedseg.federation.fedadam import FedAdam
from fedseg.federation.fedavg import FedAvg
from fedseg.federation.fedavgm import FedAvgM
from fedseg.federation.fedprox import FedProx
from fedseg.federation.fedyogi import FedYogi

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (FedAvg(), FedProx(), FedAvgM(), FedAdam(), FedYogi())
}
"""By `[federation] algorithm`."""
