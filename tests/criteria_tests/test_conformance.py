"""The suite: it passes what is registered and finds each way of being broken, by name and with a reason."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from criteria import CRITERIA, CriterionValueError, Registry
from criteria.conformance import conformance
from criteria.specimens import specimen, specimens

from .broken_criteria import BROKEN, SEEN, criterion

CHECKS = (
    "shape", "finite", "deterministic", "no state", "untouched", "permutation", "batch split", "degenerate input",
    "ties", "dead filter", "duplicate filter", "cost",
)  # fmt: skip


def outcomes(result):
    return {check.name: check.outcome for check in result.checks}


def reason(result, name):
    return next(check.reason for check in result.checks if check.name == name)


@pytest.mark.parametrize("name", CRITERIA.names())
def test_every_registered_criterion_conforms(name):
    result = conformance(name)
    assert result.passed, [f"{check.name}: {check.reason}" for check in result.failures]
    assert tuple(check.name for check in result.checks) == CHECKS
    assert outcomes(result)["shape"] == "pass"
    assert result.seconds > 0
    assert result.relative_cost > 0


@pytest.mark.parametrize("function", BROKEN, ids=lambda function: function.__name__)
def test_every_broken_criterion_is_found(function):
    SEEN.clear()
    check, says = BROKEN[function]
    result = conformance(criterion(function), specimens()[:1])
    assert check in [failure.name for failure in result.failures]
    assert says in reason(result, check)
    if function.__name__ in ("sign_error", "leftover_hook", "modified_grad"):  # the others harm more than one promise
        assert len(result.failures) == 1


def test_the_same_criterion_unbroken_passes():
    def l1_again(stats):
        return stats.weight.abs().sum(1)

    assert conformance(criterion(l1_again)).passed


def test_what_cannot_be_judged_without_scores_is_not_applicable():
    def short(stats):
        return stats.weight[:2, 0]

    result = outcomes(conformance(criterion(short)))
    assert result.pop("shape") == "fail"
    assert set(result.values()) == {"not applicable"}


def test_a_criterion_that_raises_fails_with_its_message():
    def raising(stats):
        raise ZeroDivisionError("no\nfilter")

    result = conformance(criterion(raising))
    assert reason(result, "shape") == "ZeroDivisionError: no filter"
    assert not result.passed


def test_claims_decide_what_is_asked():
    def signed(stats):
        return stats.weight.sum(1)

    assert [c.name for c in conformance(criterion(signed)).failures] == ["dead filter"]
    result = conformance(criterion(signed, claims={"permutation"}))
    assert result.passed
    assert outcomes(result)["dead filter"] == "not applicable"


def test_a_cache_by_layer_name_is_found():
    cache = {}

    def cached(stats):
        return cache.setdefault((stats.layer, stats.rows), stats.weight.abs().sum(1))

    result = conformance(criterion(cached))
    assert "another network of the same layout gets the scores of the one before" in reason(result, "no state")


def test_order_among_equals_is_found():
    def by_index(stats):
        return stats.weight.abs().sum(1) + torch.arange(stats.rows)

    names = [failure.name for failure in conformance(criterion(by_index)).failures]
    assert {"permutation", "degenerate input"} <= set(names)


def test_a_distance_that_grows_with_duplicates_is_found():
    def closeness(stats):
        return -torch.cdist(stats.weight, stats.weight).sum(1)

    result = conformance(criterion(closeness, claims={"permutation", "duplicate-lower"}))
    assert [failure.name for failure in result.failures] == ["duplicate filter"]


def test_dependence_on_the_batches_is_found():
    def per_batch(stats):
        return stats.gate_gradient_squared

    result = conformance(criterion(per_batch, needs={"gate_gradient"}))
    assert [failure.name for failure in result.failures] == ["batch split"]


def test_random_numbers_and_writing_to_statistics_are_found():
    def noisy(stats):
        return stats.weight.abs().sum(1) + torch.rand(stats.rows)

    def overwriting(stats):
        return stats.weight.abs_().sum(1)

    names = [failure.name for failure in conformance(criterion(noisy)).failures]
    assert {"deterministic", "untouched"} <= set(names)
    assert "writes to 'weight'" in reason(conformance(criterion(overwriting)), "untouched")


def test_what_a_bad_criterion_leaves_is_cleared_away():
    def messy(stats):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_grad_enabled(False)
        torch.nn.modules.module.register_module_forward_pre_hook(lambda module, args: None)
        return stats.weight.abs().sum(1)

    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    result = conformance(criterion(messy))
    assert "untouched" in [failure.name for failure in result.failures]
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.is_grad_enabled()
    assert not torch.nn.modules.module._global_forward_pre_hooks


def pair(norm=None):
    layers = [nn.Conv2d(2, 2, 3, bias=False), norm or nn.Identity(), nn.ReLU(), nn.Conv2d(2, 5, 1), nn.ReLU()]
    return specimen("pair", nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 4)), (2, 4, 4))


def test_two_channels_may_be_equally_far_from_one_another():
    assert conformance("fpgm", on=[pair()]).passed
    constant = conformance(criterion(lambda stats: stats.weight.abs().sum() + 0 * stats.weight[:, 0]), on=[pair()])
    assert "pair, 3: degenerate: all 5 scores" in reason(constant, "ties")


def test_a_dead_filter_stays_dead_behind_a_norm_without_parameters():
    tried = pair(nn.BatchNorm2d(2, affine=False))
    tried.model[1].running_mean.copy_(torch.tensor([-2.0, -3.0]))
    assert outcomes(conformance("taylor_fo", on=[tried]))["dead filter"] == "pass"


def test_claims_are_checked_at_registration():
    with pytest.raises(CriterionValueError, match=r"claims of 'x' must be among permutation, .*, got perfect"):
        Registry().register("x", family="f", needs=(), reference="r", claims={"perfect"})


@pytest.mark.parametrize("tried", specimens(), ids=lambda tried: tried.name)
def test_a_permuted_specimen_computes_the_same(tried):
    order = np.concatenate([np.arange(part.start, part.stop)[::-1] for part in tried.graph.slices.values()])
    with torch.no_grad():
        expected, got = tried.model(tried.inputs), tried.permuted(order).model(tried.inputs)
        shaken = tried.shaken().model(tried.inputs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(shaken, expected)


def test_planted_filters_are_where_they_should_be():
    plain = specimens()[0]
    dead = plain.without_filters(np.array([1, 8])).model
    assert dead.first.weight[1].abs().max() == dead.norm1.weight[1] == dead.norm1.bias[1] == 0
    assert dead.second.weight[1].abs().max() == dead.second.bias[1] == 0
    assert dead.norm1.running_mean[1] == 0 != dead.norm1.running_mean[0]
    assert torch.equal(dead.first.weight[0], plain.model.first.weight[0])
    doubled = plain.with_duplicate(0, 3).model
    assert torch.equal(doubled.first.weight[3], plain.model.first.weight[0])
    assert doubled.norm1.running_var[3] == plain.model.norm1.running_var[0]
    assert torch.equal(doubled.second.weight, plain.model.second.weight)
