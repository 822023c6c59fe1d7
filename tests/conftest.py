"""One thread for each process of tests, every process that a test starts imports this tree, and examples repeat."""

import itertools
import os
import sys
from pathlib import Path

import pytest

_HOMES = itertools.count()
ROOT = Path(__file__).parents[1]
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in processes of tests
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

try:
    from hypothesis import settings
except ImportError:  # an adapter's environment may lack it
    pass
else:
    settings.register_profile("alike", derandomize=True)  # a change fails by its own fault
    settings.load_profile("default" if os.environ.get("SECAGG_EXPLORE") else "alike")


@pytest.fixture(autouse=True, scope="session")
def _grpc_stays() -> None:
    """Where a test kills a server in this process, gRPC's last object would wait for its poller's thread for ever."""
    try:
        from grpc.aio import init_grpc_aio
    except ImportError:  # the core is tested where the extra [rpc] is not installed
        return
    init_grpc_aio()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A study sets the number of threads of its whole process, and results depend on it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a site of its own: no test knows what another one's patients have spent."""
    monkeypatch.setenv("FEDSEG_HOME", str(tmp_path_factory.getbasetemp() / f"home-{next(_HOMES)}"))


@pytest.fixture(scope="session")
def feta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals' images in FeTA's layout, to be read; `tests.support.folders.copied` gives one to change."""
    from tests.support.folders import write_hospitals  # secagg's tests run where fedseg's extra is not installed

    return write_hospitals(tmp_path_factory.mktemp("feta"))
