"""Which network something belongs to: its layout, without which scores mean nothing, and its weights."""

from __future__ import annotations

import hashlib
import warnings

from pydantic import BaseModel, ConfigDict
from torch import nn

from blend.errors import InputError
from criteria.graph import ChannelGraph


class OtherWeightsWarning(UserWarning):
    """Scores are used on a network of the same layout whose weights are not those that they were computed on."""


class NetworkIdentity(BaseModel):
    """Which network scores belong to.

    Attributes:
        layout: Fingerprint of the channel graph.
        weights: Hash of all parameters and buffers.
        shapes: Shape of every parameter and buffer, by its name in the state dictionary.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: str
    weights: str
    shapes: dict[str, tuple[int, ...]]

    def check_layout(self, graph: ChannelGraph) -> None:
        """Refuses another layout.

        Raises:
            InputError: Naming the first tensor that differs, and both shapes.
        """
        if graph.fingerprint == self.layout:
            return
        for tensor, shape in self.shapes.items():
            if graph.shapes.get(tensor) != shape:
                raise InputError(
                    f"the criterion belongs to another network: '{tensor}' has shape {graph.shapes.get(tensor)} here "
                    f"and {shape} there"
                )
        raise InputError("the criterion belongs to another network: its layers have these shapes but other couplings")

    def warn_of_other_weights(self, model: nn.Module) -> None:
        """Warns (`OtherWeightsWarning`) if a network's weights are not those that the scores were computed on."""
        if weight_hash(model) != self.weights:
            warnings.warn(
                "the scores were computed on other weights of this layout (retrained, fine-tuned or of another seed): "
                "channels are not what they were, and the frozen scores may be no better than chance; recompute them",
                OtherWeightsWarning,
                stacklevel=3,
            )


def weight_hash(model: nn.Module) -> str:
    """Hash of all parameters and buffers of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).double().numpy().tobytes())
    return digest.hexdigest()[:16]
