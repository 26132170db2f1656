"""What a machine says of its processor."""

from search.machine import kind, processor

LISTING = """processor\t: 0
cpu family\t: 6
model\t\t: 167
model name\t: Fast One 3000
flags\t\t: fpu avx2 amx_bf16 avx512f

processor\t: 1
model name\t: Slow One
"""


def test_it_is_that_of_the_first(tmp_path):
    (tmp_path / "cpuinfo").write_text(LISTING)
    assert processor(tmp_path / "cpuinfo") == "Fast One 3000"
    assert kind(tmp_path / "cpuinfo") == "Fast One 3000, cpu family 6, model 167, avx2, avx512f, amx_bf16"


def test_systems_that_do_not_list_it_say_something(tmp_path):
    assert processor(tmp_path / "missing")
    assert kind(tmp_path / "missing") == processor(tmp_path / "missing")
