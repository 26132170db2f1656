"""What a blended criterion's file consists of, part by part; what is not as it must be is refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Everything in it is known and stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Spokesman(Strict):
    """A criterion that speaks in a group, and its calibration factor."""

    criterion: str
    factor: Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]


class Correction(Strict):
    """A channel whose score is not what the blend gives it: what polishing has changed.

    Attributes:
        channel: Which one of the group, from 0.
        own: The blend's own score.
        delta: What was added to it.
    """

    channel: Annotated[int, Field(ge=0)]
    own: Annotated[float, Field(allow_inf_nan=False)]
    delta: Annotated[float, Field(allow_inf_nan=False)]


class BlendedGroup(Strict):
    """One channel group of the blend.

    Attributes:
        name: As in the channel graph: the first layer that produces the channels.
        size: Number of channels.
        layers: All layers whose output channels these are; they can only be pruned together.
        clusters: Criteria that rank this group alike.
        candidates: Who speaks, with which factor; their absolute values sum to 1. Empty where the scores were searched
            channel by channel, so that no criterion speaks.
        offset: What the group is lifted by in the global ranking.
        scores: Frozen final scores, one per channel, comparable across groups; higher means keep.
        corrections: The channels whose scores are not the blend's own; the scores hold the corrected ones.
    """

    name: str
    size: Annotated[int, Field(ge=1)]
    layers: tuple[str, ...]
    clusters: tuple[tuple[str, ...], ...]
    candidates: tuple[Spokesman, ...]
    offset: Annotated[float, Field(allow_inf_nan=False)]
    scores: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    corrections: tuple[Correction, ...] = ()

    @model_validator(mode="after")
    def _one_score_per_channel(self) -> BlendedGroup:
        if len(self.scores) != self.size:
            raise ValueError(f"group '{self.name}' has {self.size} channels but {len(self.scores)} scores")
        return self

    @model_validator(mode="after")
    def _corrected_as_said(self) -> BlendedGroup:
        for c in self.corrections:
            # own + delta rounds once, of numbers that are about 1
            if c.channel >= self.size or abs(c.own + c.delta - self.scores[c.channel]) > 1e-9:
                raise ValueError(f"group '{self.name}' has no channel {c.channel} of score {c.own} + {c.delta}")
        return self

    @property
    def own_scores(self) -> tuple[float, ...]:
        """The scores without corrections."""
        own = {correction.channel: correction.own for correction in self.corrections}
        return tuple(own.get(channel, score) for channel, score in enumerate(self.scores))


class CriterionRecord(Strict):
    """A criterion that speaks somewhere: as it is asked for, with the values of all its parameters."""

    name: str
    family: str
    reference: str
    parameters: dict[str, bool | int | float | str]


class Part(BaseModel):
    """What is read of a part that is otherwise for people."""

    model_config = ConfigDict(extra="allow", strict=True)


class SplitPart(Part):
    """A split: what tells whether data were in it."""

    hash: str


class TaskPart(Part):
    """The task that was searched."""

    options: dict[str, str] = {}
    ignore: list[str] = []
    splits: dict[str, SplitPart] = {}


class BaselinePart(Part):
    """An opponent."""

    name: str
    kind: str


class MetricsPart(Part):
    """What the search found."""

    baselines: list[BaselinePart] = []
