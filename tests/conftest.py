"""What every test shares: shapes checked at run time, one thread, fixed seeds, where the real data lie."""

from pathlib import Path

from jaxtyping import install_import_hook

with install_import_hook("relupath", "beartype.beartype"):
    import relupath
    import relupath._search
    import relupath.errors  # noqa: F401

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    max_examples=20,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fixed")
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run the whole zoo of networks (half an hour)")


def pytest_collection_modifyitems(config, items):
    slow = [] if config.getoption("--runslow") else [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def data() -> Path:
    """The folder of real weights and pictures, beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs real weights and pictures in ../shared/data, which this machine does not have")
    return folder
