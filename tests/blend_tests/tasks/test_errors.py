import pytest

from blend.errors import BlendError, InputError, described, nearest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digit", "; did you mean 'digits'?"),
        ("DIGITS", "; did you mean 'digits'?"),
        ("cifar", "; did you mean 'cifar10' or 'cifar100'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest_suggests_only_what_is_near(name, expected):
    assert nearest(name, ["digits", "textures", "cifar10", "cifar100"]) == expected


def test_nearest_of_nothing_is_nothing():
    assert nearest("digits", []) == ""


def test_bad_input_is_also_a_value_error():
    assert issubclass(InputError, BlendError)
    assert issubclass(InputError, ValueError)
    assert not issubclass(BlendError, ValueError)


def test_an_exception_is_described_in_one_line():
    assert described(OSError("no\n  disk")) == "OSError: no disk"
    assert described(MemoryError()) == "MemoryError"
