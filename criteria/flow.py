"""Synaptic flow: how much passes through each weight when all are positive and the network is linear; no data."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from criteria.errors import CriterionError
from criteria.evaluating import called_with
from criteria.layers import BATCH_NORM, INSTANCE_NORM, MIXING
from criteria.streaming import hooks

_SATURATING = frozenset(
    {
        *(getattr(where, name) for where in (torch, Tensor) for name in ("sigmoid", "sigmoid_", "tanh", "tanh_")),
        *(F.sigmoid, F.hardsigmoid, F.tanh, F.hardtanh, F.hardtanh_, F.relu6, F.softsign),
    }
)
_IN_PLACE = frozenset({Tensor.mul_, Tensor.multiply_})
_PRODUCTS = frozenset({torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, *_IN_PLACE})
_SHAPED_LIKE = frozenset({Tensor.expand_as, Tensor.view_as, Tensor.reshape_as})
_NORMS = (*BATCH_NORM, *INSTANCE_NORM, nn.GroupNorm, *MIXING, nn.LocalResponseNorm)


def flow_gradients(model: nn.Module, layers: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    r"""The gradient :math:`\partial R/\partial |w|` of :math:`R = 1^T \prod_l |W_l| 1` (Tanaka et al., 2020).

    R is the sum of the network's outputs for one example of ones, with the absolute value of every parameter, without
    biases, and with every normalisation layer passing on what it gets: evaluated as it is, it would shift and scale
    the flow by statistics of the data. So does every function that saturates (the sigmoid of a gate, tanh, ReLU6): the
    flow is so large that nothing would pass. A gate that multiplies flow does so over its largest value, a constant:
    passed on as it is, each gate would square what comes before it. In float64, for R is a product over all layers.

    Args:
        model: the network, in eval mode; it is not touched.
        layers: whose weights to differentiate by.
        inputs: a batch, of which only shape and device are used.

    Returns:
        For each layer the gradient, laid out like its weight.

    Raises:
        CriterionError: the inputs are not floating point, a layer's weight is not a parameter, or the network does not
            run in double precision.
    """
    if not inputs.is_floating_point():
        raise CriterionError(f"synaptic flow needs inputs of floating point, got {inputs.dtype}")
    positive = _positive(model)
    weights: dict[str, Tensor] = {}
    for layer in layers:
        weight = positive.get(id(model.get_submodule(layer).weight))
        if weight is None:
            raise CriterionError(f"the weight of {layer!r} must be a parameter to have a gradient, got a computed one")
        weights[layer] = weight.requires_grad_()
    with hooks(_passing_on(model)), torch.enable_grad(), _Unsaturated():
        ones = torch.ones_like(inputs[:1], dtype=torch.float64).requires_grad_()  # by which flow is told from weights
        try:
            flow: Tensor = called_with(model, positive, ones.clone()).sum()
        except (RuntimeError, TypeError, AssertionError) as error:
            if not isinstance(error, AssertionError) and "double" not in str(error).lower():
                raise
            raise CriterionError(f"synaptic flow needs a network that runs in double precision: {error}") from error
    if not flow.requires_grad:
        return {layer: torch.zeros_like(weight) for layer, weight in weights.items()}
    gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, gradients, strict=True))


class _Unsaturated(TorchFunctionMode):
    """Functions that saturate pass on what they get, however the network calls them, and over its largest as a gate."""

    def __init__(self) -> None:
        """Start with nothing that came out of such a function."""
        super().__init__()
        self._saturated: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The argument of such a function, the result of any other."""
        kwargs = kwargs or {}
        if func in _SATURATING:
            return self._marked(args[0] if args else kwargs["input"])
        if func in _PRODUCTS:
            args = self._factors(args, in_place=func in _IN_PLACE)
        result = func(*args, **kwargs)
        sources = [value for value in args if isinstance(value, Tensor)][: 1 if func in _SHAPED_LIKE else None]
        alone = len(sources) == 1 and id(sources[0]) in self._saturated and isinstance(result, Tensor)
        return self._marked(result) if alone else result

    def _marked(self, saturated: Tensor) -> Tensor:
        self._saturated[id(saturated)] = saturated  # held, as another tensor would get its id
        return saturated

    def _factors(self, factors: Sequence[Any], in_place: bool) -> Sequence[Any]:
        """The factors of a product; if all are flow, the last of them that saturated is a gate, and at most 1."""
        flow = all(isinstance(factor, Tensor) and factor.grad_fn is not None for factor in factors)
        candidates = {id(factor) for factor in factors[in_place:]} if flow else set()
        gate = next((self._saturated[known] for known in reversed(self._saturated) if known in candidates), None)
        if gate is None:
            return factors
        places = [place for place, factor in enumerate(factors) if factor is gate]
        of_itself = len(places) > 1  # x * sigmoid(x)
        passed = torch.ones_like(gate) if of_itself else gate / gate.detach().abs().amax().clamp(min=1e-300)
        return *factors[: places[-1]], passed, *factors[places[-1] + 1 :]


def _positive(model: nn.Module) -> dict[int, Tensor]:
    """Stand-ins for all parameters and buffers, by their ids."""
    found = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().double().abs()
        found[id(parameter)] = torch.zeros_like(value) if name.rpartition(".")[2] == "bias" else value
    for buffer in model.buffers():
        copied = buffer.detach().clone()
        found[id(buffer)] = copied.double() if copied.is_floating_point() else copied
    return found


def _passing_on(model: nn.Module) -> Iterator[RemovableHandle]:
    for module in model.modules():
        if isinstance(module, _NORMS):
            yield module.register_forward_hook(lambda module, args, output: args[0])
