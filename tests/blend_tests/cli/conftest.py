from pathlib import Path

import pytest

from blend.config import search_config
from blend.pipeline import start

TASK_FILE = Path(__file__).parents[1] / "task_file.py"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    config = search_config(task=f"{TASK_FILE}:small", evaluations=8, population=8, random_search=False)
    return start(config, folder / "it")
