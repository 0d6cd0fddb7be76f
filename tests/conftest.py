"""What every test shares: shapes checked at run time, one thread, fixed seeds, where the real data lie."""

import functools
import gc
from pathlib import Path

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from hypothesis import HealthCheck, settings
from jaxtyping import AbstractArray, install_import_hook, jaxtyped

WARN = BeartypeConf(violation_type=UserWarning)
"""A warning is an error, unless a test says that it runs unchecked."""


def checked(function=None, *, typechecker=None):
    """What the import hook puts on every function, at a third of the cost.

    Sizes are compared where an annotation names a shape; elsewhere the types alone are checked. A function within a
    function is made at every call, and to check it would cost more than to run it.
    """
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if isinstance(function, type):
        return jaxtyped(function, typechecker=typechecker)
    if "<locals>" in function.__qualname__:
        return function
    if any(_names_a_shape(annotation, function.__globals__) for annotation in function.__annotations__.values()):
        return jaxtyped(function, typechecker=typechecker)
    return beartype(function, conf=WARN)


def _names_a_shape(annotation, names):
    alias = names.get(annotation)
    return "'" in str(annotation) or (isinstance(alias, type) and issubclass(alias, AbstractArray))


jaxtyping.jaxtyped = checked

with install_import_hook("relupath", "beartype.beartype"):
    import relupath
    import relupath._search
    import relupath.errors  # noqa: F401


from asserts import typechecks_off  # noqa: E402  after the package, which is imported under the hook

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


def pytest_collection_finish():
    """What is loaded stays: to look through it for garbage, again and again, would take a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def unchecked():
    """As users run it: no types are checked, which the other tests have checked."""
    with typechecks_off():
        yield


@pytest.fixture
def data() -> Path:
    """The folder of real weights and pictures, beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs real weights and pictures in ../shared/data, which this machine does not have")
    return folder
