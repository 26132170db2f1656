import pytest
import torch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep what tests train and draw out of the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BLEND_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """The networks here are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
