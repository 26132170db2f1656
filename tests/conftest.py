"""One thread everywhere, also in the processes that tests start: small networks gain nothing from more."""

import os

import pytest

from tests.clusters import ray_head

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_cluster():
    """Address and process of a ray head with two CPUs, which takes ten seconds to start."""
    pytest.importorskip("ray")
    with ray_head() as cluster:
        yield cluster
