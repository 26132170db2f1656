"""One thread everywhere, also in the processes that tests start: small networks gain nothing from more."""

import os

import pytest

from tests.clusters import ray_head

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would be as wide as its lines

LONGEST = ("test_soak", "test_ray", "test_pipeline", "test_cluster")
"""Begun first, so that neither of two processes is left alone with them at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def ray_cluster():
    """Address and process of a ray head with two CPUs, which takes ten seconds to start."""
    pytest.importorskip("ray")
    with ray_head() as cluster:
        yield cluster
