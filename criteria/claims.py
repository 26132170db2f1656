"""What a criterion claims of its scores beyond the contract that all keep: the conformance suite holds it to that."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from criteria.errors import CriterionValueError

CLAIMS: Mapping[str, str] = MappingProxyType(
    {
        "permutation": "permuting the filters of a layer permutes the scores",
        "batch-split": "how the data are cut into batches does not matter",
        "alike": "channels that are alike score alike",
        "distinct": "channels that differ score differently",
        "dead-last": "a channel whose filter and BatchNorm are all zero scores lowest",
        "duplicate-lower": "a filter scores lower once another channel has the same one",
    }
)
"""What can be claimed, by name."""

DEFAULT_CLAIMS = frozenset(CLAIMS) - {"duplicate-lower"}
"""What is claimed unless something else is said at registration."""

_PRECLUDED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "gate_gradient": frozenset({"batch-split"}),  # squared per batch
        "weight_gradient_magnitude": frozenset({"batch-split"}),  # |.| per batch
        "gate_curvature": frozenset({"batch-split", "permutation", "alike"}),  # per batch; probes belong to positions
        "hessian_diagonal": frozenset({"batch-split", "permutation", "alike", "dead-last"}),  # signed, too
        "hessian_gradient": frozenset({"batch-split", "dead-last"}),  # per batch, signed
    }
)


def known_claims(name: str, claims: Collection[str]) -> frozenset[str]:
    """The claims of the criterion ``name``.

    Raises:
        CriterionValueError: one of them is not among `CLAIMS`.
    """
    if unknown := sorted(set(claims) - set(CLAIMS)):
        raise CriterionValueError(f"claims of {name!r} must be among {', '.join(CLAIMS)}, got {', '.join(unknown)}")
    return frozenset(claims)


def default_claims(needs: Collection[str]) -> frozenset[str]:
    """The default, less what the nature of a needed statistic precludes; a need's parameters do not matter."""
    return DEFAULT_CLAIMS.difference(*(_PRECLUDED.get(need.partition(":")[0], ()) for need in needs))
