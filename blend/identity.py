"""Which network something belongs to: its layout, without which scores mean nothing, and its weights."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from torch import nn

from blend.errors import InputError
from criteria.graph import ChannelGraph

Shape = tuple[int, ...] | str


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
        self.check_shapes(graph.shapes)
        raise InputError("the criterion belongs to another network: its layers have these shapes but other couplings")

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuses a network with other layers.

        Args:
            shapes: Of all its tensors.

        Raises:
            InputError: Naming the first tensor that differs, with both shapes.
        """
        if difference := self.difference(shapes):
            tensor, here, there = difference
            raise InputError(
                f"the criterion belongs to another network: '{tensor}' has shape {here} here and {there} there"
            )

    def difference(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, Shape, Shape] | None:
        """The first tensor that another network has otherwise: its name, its shape there, and its shape in this one."""
        for tensor in {**self.shapes, **shapes}:
            there, here = shapes.get(tensor, "absent"), self.shapes.get(tensor, "absent")
            if there != here:
                return tensor, there, here
        return None

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
