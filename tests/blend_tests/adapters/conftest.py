"""Importances of Torch-Pruning that are criteria for the time of a test."""

import pytest

from criteria import CRITERIA


@pytest.fixture
def theirs():
    from blend.adapters.torch_pruning import register_importance  # the other adapters' tests need none of it

    names = []

    def registered(*arguments, **options):
        names.append(arguments[0])
        return register_importance(*arguments, **options)

    yield registered
    for name in names:
        CRITERIA._criteria.pop(name, None)
