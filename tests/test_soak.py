"""Searches whose driver is killed at random moments, again and again, end as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kills", "strategies"), [(3, "ga"), pytest.param(70, "all", marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(kills, strategies):
    searches = ["--kills", str(kills), "--strategies", strategies, "--evaluations", "96", "--seed", str(kills)]
    command = [sys.executable, "-m", "tests.soak", *searches]
    soaked = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert soaked.returncode == 0, soaked.stderr
    counts = json.loads(soaked.stdout)
    assert counts["kills"] == kills
    assert (counts["differences"], counts["orphans"], counts["unfinished"]) == (0, 0, 0)
