"""Criteria that ask how well the layers that read a group could do without a channel."""

from typing import Annotated

import torch
from torch import Tensor

from criteria.claims import DEFAULT_CLAIMS
from criteria.errors import CriterionValueError
from criteria.moments import ConsumerMoments, consumer_moments
from criteria.passes import Network, register_pass
from criteria.specification import above

_LACKING = "needs a convolution or linear layer that mixes the group's channels; there is none"
_NEGLIGIBLE = 1e-12  # of what there is to explain: less is rounding


@register_pass(
    "cap",
    family="reconstruction",
    reference="Xie et al., 2021, arXiv:2108.13728",
    lacking=_LACKING,
    expensive=False,
    claims=DEFAULT_CLAIMS - {"alike"},  # an order: of channels that are alike one comes first
)
def cap(network: Network, *, patches: bool = False, ridge: Annotated[float, above(0)] = 0.01) -> dict[str, Tensor]:
    r"""Order in which a greedy forward selection takes the channels that explain most of the consumers' outputs.

    With x what a consumer reads, Σ its covariance and y = W x, the variance of y that channels S explain is
    :math:`\mathrm{tr}(\Sigma_{yS} (\Sigma_{SS} + \lambda I)^{-1} \Sigma_{Sy})`; λ keeps it meaningful where there are
    fewer observations than channels. Each step takes the channel that adds most. Of several consumers, the shares of
    their variance that are explained are summed. Of a consumer that reads other groups, too, y is what it makes of
    this one. Depthwise consumers are left out: their readers count.

    Args:
        network: the network and its calibration data; labels are not used.
        patches: unfold what a kernel reads, instead of taking its taps for alike; see `consumer_moments`.
        ridge: λ over the mean variance of x; above 0.

    Returns:
        Group → scores of shape (channels,): the number of channels for the first one taken, down to 1 for the last;
        0 for all those that explain nothing more.

    Raises:
        CriterionValueError: ``ridge`` is not positive.

    Caution:
        Looks at the next layer's outputs alone, not at the loss; made for networks whose weights are corrected
        afterwards.
    """
    if not ridge > 0:
        raise CriterionValueError(f"ridge must be above 0, got {ridge}")
    found = consumer_moments(network, patches)
    return {group.name: _forward(group.size, [_Regression(m, ridge) for m in moments]) for group, moments in found}


class _Regression:
    """A consumer's regression on the channels taken so far: Cholesky's factorisation, a block of columns at a time.

    With V the rows of the factor and U the same steps of the outputs, what is left to explain are the covariance
    S - VᵀV of x and the cross-covariance G - UᵀV of y with x. Of these only each channel's own blocks are kept.
    """

    def __init__(self, moments: ConsumerMoments, ridge: float) -> None:
        width = len(moments.mean)
        self.channels = torch.from_numpy(moments.channels)
        self.block = moments.block
        filters = _narrowed(moments.filters)
        self.cross = filters @ moments.covariance  # (outputs, C·b)
        self.total = float((self.cross * filters).sum())
        penalty = ridge * moments.covariance.diagonal().mean()
        self.inputs = moments.covariance + penalty * torch.eye(width, dtype=torch.float64)
        self.of_inputs = self.inputs.new_zeros(width, width)  # V
        self.of_outputs = self.inputs.new_zeros(width, len(filters))  # U
        self.taken = 0  # rows of both that are filled
        self.own = self._blocks(self.inputs)  # (b, C, b), each channel's covariance that is left
        columns = self.cross.view(len(filters), -1, self.block)
        self.gram = torch.einsum("rcb,rcd->bcd", columns, columns)  # (b, C, b), of its cross-covariance with itself
        self.open = torch.ones(len(self.channels), dtype=torch.bool)

    def _blocks(self, square: Tensor) -> Tensor:
        count, size = len(self.channels), self.block
        return square.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(0, 2, 1).clone()

    def gains(self) -> Tensor:
        """(C,), the share of the variance of y that each channel would add."""
        own, gram = self.own.transpose(0, 1), self.gram.transpose(0, 1)
        own = torch.where(self.open[:, None, None], own, torch.eye(self.block, dtype=own.dtype))
        if self.block == 1:  # the same as below, without the detour over matrices
            explained = (gram / own).flatten()
        else:
            explained = torch.cholesky_solve(gram, torch.linalg.cholesky(own)).diagonal(dim1=1, dim2=2).sum(1)
        return explained.where(self.open, 0) / self.total

    def take(self, channel: int) -> None:
        """Explain what there is by a channel."""
        for row in (self.channels == channel).nonzero().flatten().tolist():
            columns = slice(row * self.block, (row + 1) * self.block)
            known, outputs = self.of_inputs[: self.taken], self.of_outputs[: self.taken]
            left = self.inputs[columns] - known[:, columns].T @ known
            factor = torch.linalg.cholesky(left[:, columns])
            step = torch.linalg.solve_triangular(factor, left, upper=False)
            crossing = (self.cross[:, columns] - outputs.T @ known[:, columns]).T
            crossing = torch.linalg.solve_triangular(factor, crossing, upper=False)
            self._subtract(step, crossing, crossing @ self.cross - (crossing @ outputs.T) @ known)
            self.of_inputs[self.taken : self.taken + self.block] = step
            self.of_outputs[self.taken : self.taken + self.block] = crossing
            self.taken += self.block
            self.open[row] = False

    def _subtract(self, step: Tensor, crossing: Tensor, overlap: Tensor) -> None:
        """Bring the blocks up to date: v, u, and u times the cross-covariance, each of b rows."""
        step = step.view(self.block, -1, self.block)
        overlap = overlap.view(self.block, -1, self.block)
        self.own -= torch.einsum("kcb,kcd->bcd", step, step)
        both = torch.einsum("kcb,kcd->bcd", step, overlap)
        squared = torch.einsum("kcb,kl,lcd->bcd", step, crossing @ crossing.T, step)
        self.gram += squared - both - both.permute(2, 1, 0)


def _forward(size: int, consumers: list[_Regression]) -> Tensor:
    consumers = [consumer for consumer in consumers if consumer.total > 0]
    scores = torch.zeros(size, dtype=torch.float64)
    for place in range(size, 0, -1):
        gains = torch.zeros(size, dtype=torch.float64)
        for consumer in consumers:
            gains[consumer.channels] += consumer.gains()
        best = int(gains.argmax())
        if gains[best] <= _NEGLIGIBLE:
            break
        scores[best] = place
        for consumer in consumers:
            consumer.take(best)
    return scores


def _narrowed(filters: Tensor) -> Tensor:
    """As few filters as have the same products with one another's inputs, :math:`F^T F = W^T W`."""
    if len(filters) <= filters.shape[1]:
        return filters
    values, vectors = torch.linalg.eigh(filters.T @ filters)
    narrowed: Tensor = (vectors * values.clamp(min=0).sqrt()).T
    return narrowed


@register_pass(
    "thinet",
    family="reconstruction",
    reference="Luo et al., ICCV 2017, arXiv:1707.06342",
    lacking=_LACKING,
    expensive=False,
    claims=DEFAULT_CLAIMS - {"alike"},  # an order, as of `cap`
)
def thinet(network: Network, *, patches: bool = False) -> dict[str, Tensor]:
    r"""Order in which a greedy backward selection gives up the channels that change the consumers' outputs least.

    With :math:`\hat x_i` what a consumer adds up for channel i, the error of removing the channels T is
    :math:`E \|\sum_{i \in T} \hat x_i\|^2 = \sum_{i,j \in T} K_{ij}`, without any compensation and not centred. Each
    step adds the channel to T that leaves the error smallest. Of several consumers the errors are summed, each in
    units of :math:`\mathrm{tr} K`. Depthwise consumers are left out: their readers count.

    Args:
        network: the network and its calibration data; labels are not used.
        patches: unfold what a kernel reads, instead of taking its taps for independent; see `consumer_moments`.

    Returns:
        Group → scores of shape (channels,): the number of channels for the last one given up, down to 1 for the
        first; 0 for all that the consumers add up to nothing.

    Caution:
        Looks at the next layer's outputs alone, not at the loss, and removes greedily, one channel at a time.
    """
    found = consumer_moments(network, patches)
    return {group.name: _backward([_contributions(group.size, m) for m in moments]) for group, moments in found}


def _contributions(size: int, moments: ConsumerMoments) -> Tensor:
    """K of one consumer over its trace, of shape (size, size)."""
    count, block = len(moments.channels), moments.block
    products = (moments.filters.T @ moments.filters) * moments.second_moment
    small = products.view(count, block, count, block).sum((1, 3))
    whole = torch.zeros(size, size, dtype=torch.float64)
    where = torch.from_numpy(moments.channels)
    whole[where[:, None], where] = small / small.trace().clamp(min=torch.finfo(torch.float64).tiny)
    return whole


def _backward(consumers: list[Tensor]) -> Tensor:
    contributions = torch.stack(consumers).sum(0)
    alone = contributions.diagonal()
    cost = alone.clone()
    scores = torch.zeros(len(cost), dtype=torch.float64)
    for place in range(1, len(cost) + 1):
        weakest = int(cost.argmin())
        scores[weakest] = place
        cost += 2 * contributions[weakest]
        cost[weakest] = torch.inf
    return scores.where(alone > 0, 0)
