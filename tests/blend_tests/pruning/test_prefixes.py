import pytest
import torch

from blend.pruning.prefixes import PrefixCache, Snapshot

KILO = 256  # elements of four bytes


def tensor(kilobytes=1):
    return torch.zeros(KILO * kilobytes)


def put(cache, key, kilobytes=1):
    one = tensor(kilobytes)
    cache.put(key, one, [Snapshot(one)])
    return one


def test_what_is_kept_is_found():
    cache = PrefixCache(4096)
    one = put(cache, "a")
    assert cache.get("a") is one
    assert cache.get("b") is None
    assert (cache.size, cache.hits) == (1024, 1)


def test_what_was_not_used_for_longest_makes_room():
    cache = PrefixCache(3 * 1024)
    for key in "abc":
        put(cache, key)
    cache.get("a")
    put(cache, "d", 2)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "d"]
    assert cache.size == 3 * 1024


def test_what_there_is_no_room_for_pushes_nothing_out():
    cache = PrefixCache(1024)
    put(cache, "a")
    put(cache, "b", 2)
    assert cache.get("a") is not None
    assert cache.get("b") is None


def test_a_view_takes_what_it_is_a_view_of():
    cache = PrefixCache(4096)
    one = tensor(2)[:1]
    cache.put("a", one, [Snapshot(one)])
    assert cache.size == 2048


def test_what_somebody_has_written_to_is_gone():
    cache = PrefixCache(4096)
    one = put(cache, "a")
    one[:1].add_(1)
    assert cache.get("a") is None
    assert cache.size == 0


def test_what_was_written_to_before_it_could_be_kept_is_not_kept():
    cache, one = PrefixCache(4096), tensor()
    snapshot = Snapshot(one)
    one.add_(1)
    cache.put("a", one, [snapshot])
    assert cache.get("a") is None


@pytest.mark.parametrize("inference", [True, False])
def test_what_does_not_tell_who_writes_to_it_is_not_kept(inference):
    cache = PrefixCache(4096)
    with torch.inference_mode(inference):
        put(cache, "a")
    assert (cache.get("a") is None) is inference


def test_what_is_no_tensor_is_not_kept():
    cache = PrefixCache(4096)
    cache.put("a", (1, 2), [Snapshot((1, 2))])
    assert cache.get("a") is None


def test_a_key_is_known_from_the_second_time_on_for_a_while(monkeypatch):
    monkeypatch.setattr("blend.pruning.prefixes._REMEMBERED", 2)
    cache = PrefixCache(0)
    assert [cache.meets_again(key) for key in "aabacab"] == [False, True, False, True, False, True, False]
