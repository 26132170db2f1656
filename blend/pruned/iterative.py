"""From the choice of channels to the network that is saved: in one step or in several, trained on after each if asked.

Every step looks at the network as the one before has left it; the mask that is kept is always about the unpruned one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from blend.budget import Cost
from blend.identity import weight_hash
from blend.progress import say
from blend.pruned.buffers import all_tensors, check_unsaved, put_tensors, unsaved_names
from blend.pruned.choice import Chosen, Request, keep_at, lowest
from blend.pruned.finetuning import Course, Diverged, best_epoch, finetuned
from blend.pruned.latency import LatencyModel
from blend.pruned.rescoring import Rescoring
from blend.pruned.step import compensated, recalibrated
from blend.pruned.training_data import TrainingData, training_data
from blend.pruned.unfinished import Slot, Unfinished
from blend.pruning import PrunedNetwork
from criteria.graph import Keep
from criteria.remains import remaining_graph

POSITION = "position"


@dataclass(frozen=True)
class Stage:
    """A network on the way.

    Attributes:
        title: What tables call it.
        keep: The channels of the unpruned network that stay.
        network: With these channels.
    """

    title: str
    keep: Keep
    network: nn.Module


@dataclass(frozen=True)
class Position:
    """How far it has come.

    Attributes:
        step: That is being done, from 1.
        now: The network as it is.
        shown: Those that the record tells of, the unpruned one first.
        courses: Of fine-tuning, step by step.
        pruned: Whether of this step only fine-tuning is left.
    """

    step: int
    now: Stage
    shown: tuple[Stage, ...]
    courses: tuple[Course, ...] = ()
    pruned: bool = False

    def at(self, title: str, keep: Keep, network: nn.Module, *, shown: bool) -> Position:
        """With another network as it is, that the record tells of or not."""
        stage = Stage(title, keep, network)
        return replace(self, now=stage, shown=(*self.shown, stage) if shown else self.shown)


class Steps:
    """All that is to be done for a request.

    Args:
        chosen: What the criterion says of the unpruned network.
        request: What was asked for.

    Raises:
        InputError: What to train on is missing or not fit for it, the network would need what it does not save, or the
            criterion file has no formula for more than one step.
    """

    def __init__(self, chosen: Chosen, request: Request) -> None:
        self.chosen, self.request, self.plan = chosen, request, request.plan
        self.cost, self.floor = chosen.cost, lowest(chosen, request)
        self.recipes = self.plan.recipes(chosen.task)
        self.rescoring = Rescoring.by(chosen, request) if self.plan.steps > 1 else None
        self.data: TrainingData | None = None
        if self.recipes and chosen.task.finetune:
            apart = (chosen.splits.heldout, chosen.splits.test)
            self.data = training_data(chosen.task.finetune.train, self.recipes[0].batch_size, apart)
            check_unsaved(chosen.task.model, self.data)

    @property
    def resumable(self) -> bool:
        """Whether it takes long enough to be saved on the way."""
        return self.recipes is not None or self.plan.steps > 1

    def identity(self) -> dict[str, Any]:
        """All that the result depends on."""
        chosen, request = self.chosen, self.request
        return {
            **chosen.config.model_dump(mode="json", exclude={"directory"}), "ignore": request.ignore,
            "criterion": chosen.criterion, "min_channels": request.min_channels, "round_to": request.round_to,
            "compensate": chosen.compensate, "cost": chosen.cost.kind, "iterative": self.plan.steps,
            "schedule": self.plan.schedule, **self._training(),
            "layout": chosen.graph.fingerprint, "weights": weight_hash(chosen.task.model),
            **{f"{split.name} data": split.fingerprint() for split in chosen.splits},
        }  # fmt: skip

    def _training(self) -> dict[str, Any]:
        if not self.recipes or not self.data:
            return {"finetune": None}
        recipe = {f"finetune.{name}": value for name, value in asdict(self.recipes[0]).items()}
        epochs = sum(recipe.epochs for recipe in self.recipes)
        return {"finetune": epochs, **recipe, "training data": self.data.fingerprint}

    def run(self, unfinished: Unfinished) -> Position:
        """Does them, from where they were left.

        Args:
            unfinished: Where the way is saved, held.

        Returns:
            Where they end.

        Raises:
            InputError: A reduction cannot be reached.
            BlendError: Training diverged, or the way could not be saved.
        """
        position = self._found(unfinished)
        if position is None:
            position = self._start()
        else:
            say(f"going on from '{unfinished.folder}'")
        while True:
            if not position.pruned:
                position = self._saved(self._pruned(position), unfinished)
            position = self._trained(position, unfinished)
            if position.step == self.plan.steps:
                return position
            done = replace(position.now, title=f"step {position.step} of {self.plan.steps}")
            following = replace(position, step=position.step + 1, shown=(*position.shown, done), pruned=False)
            position = self._saved(following, unfinished)

    def _start(self) -> Position:
        """The unpruned network; refuses a last step that could not be reached."""
        keep_at(self.chosen.config.reduction, self.chosen, self.request, self.cost, self.floor)
        return Position(1, self._unpruned, (self._unpruned,))

    @property
    def _unpruned(self) -> Stage:
        return Stage("unpruned", np.ones(len(self.chosen.graph), dtype=bool), self.chosen.task.model)

    def _pruned(self, position: Position) -> Position:
        """What is left of the network after this step's channels are gone."""
        here, last = self._here(position), position.step == self.plan.steps
        reduction = self.plan.reductions(self.chosen.config.reduction)[position.step - 1]
        cost, mask = RemainingCost(self.cost, position.now.keep), np.ones(len(here.graph), dtype=bool)
        if here.scores or cost.reduction(mask) < reduction:  # a step before may have gone further, down to the floors
            mask = keep_at(reduction, here, self.request, cost, self.floor)
        keep = composed(position.now.keep, mask)
        what = (here.task.model, here.graph, mask, here.calibration)
        if last or here.compensate == "none":
            position = position.at("pruned", keep, recalibrated(*what), shown=last)
        if here.compensate != "none":
            network = recalibrated(*what, compensated(*what, here.compensate))
            position = position.at("compensated", keep, network, shown=last)
        return replace(position, pruned=True)

    def _here(self, position: Position) -> Chosen:
        """What the criterion says of the network as it is."""
        if self.rescoring is None or (position.step == 1 and self.rescoring.file is None):
            return self.chosen
        task = replace(self.chosen.task, model=position.now.network)
        graph = remaining_graph(self.chosen.graph, position.now.keep, position.now.network)
        return replace(self.chosen, task=task, graph=graph, scores=self.rescoring.scores(task, graph, self.floor))

    def _trained(self, position: Position, unfinished: Unfinished) -> Position:
        """After fine-tuning, if it was asked for."""
        if self.recipes is None or self.data is None:
            return position
        chosen, step, steps = self.chosen, position.step, self.plan.steps
        seed = int(np.random.SeedSequence([chosen.config.seed, step]).generate_state(1)[0])
        try:
            network, course = finetuned(
                position.now.network, chosen.task.model, chosen.task, self.data, chosen.splits.heldout,
                self.recipes[step - 1], seed, Slot(unfinished, f"epochs-{step}"), batch_size=chosen.config.batch_size,
                device=chosen.config.device,
                title="fine-tuning" if steps == 1 else f"fine-tuning, step {step} of {steps}",
            )  # fmt: skip
        except Diverged:
            unfinished.remove()  # the same would happen again
            raise
        position = position.at("fine-tuned", position.now.keep, network, shown=step == steps)
        return replace(position, courses=(*position.courses, course))

    def _saved(self, position: Position, unfinished: Unfinished) -> Position:
        """The position as it would be found again, so that going on cannot differ from never stopping."""
        if not self.resumable:
            return position
        _, *stages = (*position.shown, position.now)  # the unpruned network is known
        tensors = {
            f"{number}/{name}": tensor
            for number, stage in enumerate(stages)
            for name, tensor in all_tensors(stage.network).items()
        }
        about = {key: getattr(position, key) for key in ("step", "pruned", "courses")}
        if isinstance(self.cost, LatencyModel):  # measured anew, it would contradict the mask
            about["latency"] = self.cost.record()
        titles = [{"title": one.title, "removed": np.flatnonzero(~one.keep).tolist()} for one in stages]
        unfinished.save(POSITION, tensors, {**about, "stages": titles})
        unfinished.discard(f"epochs-{position.step - 1}")
        found = self._found(unfinished)
        return position if found is None else found

    def _found(self, unfinished: Unfinished) -> Position | None:
        saved = unfinished.load(POSITION) if self.resumable else None
        if saved is None:
            return None
        tensors, about = saved
        if "latency" in about:
            self.cost = LatencyModel.recorded(self.chosen.graph, about["latency"])
            self.chosen = replace(self.chosen, cost=self.cost)
        stages = []
        for number, one in enumerate(about["stages"]):
            keep = np.ones(len(self.chosen.graph), dtype=bool)
            keep[one["removed"]] = False
            mine = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{number}/")}
            stages.append(Stage(one["title"], keep, rebuilt(self.chosen, keep, mine)))
        shown = (self._unpruned, *stages[:-1])
        return Position(about["step"], stages[-1], shown, tuple(about["courses"]), about["pruned"])


class RemainingCost:
    """The cost of what a mask leaves of a network that is pruned already, as a share of the unpruned one's.

    Args:
        whole: Counts what the unpruned network costs.
        keep: What is left of that.
    """

    def __init__(self, whole: Cost, keep: Keep) -> None:
        self.whole, self.keep = whole, keep
        self.kind, self.full = whole.kind, whole.full

    def __call__(self, keep: Keep) -> float:
        """As in `Cost`."""
        return self.whole(composed(self.keep, keep))

    def reduction(self, keep: Keep) -> float:
        """As in `Cost`."""
        return self.whole.reduction(composed(self.keep, keep))


def composed(first: Keep, second: Keep) -> Keep:
    """One mask in the place of two, of which the second is about what the first has left."""
    keep = first.copy()
    keep[first] = second
    return keep


def rebuilt(chosen: Chosen, keep: Keep, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a mask, with these tensors; biases that the unpruned one does not have are added."""
    network = PrunedNetwork(chosen.task.model, chosen.graph).extract(keep)
    for name in tensors.keys() - network.state_dict().keys() - unsaved_names(network):
        layer: Any = network.get_submodule(name.rpartition(".")[0])
        layer.bias = nn.Parameter(tensors[name].to(layer.weight))
    put_tensors(network, tensors)
    return network


def training_record(steps: Steps, courses: Sequence[Course]) -> dict[str, Any] | None:
    """What the record says of fine-tuning: how, and of each step its course and which of its epochs was kept."""
    if not steps.recipes:
        return None
    rows = zip(steps.recipes, courses, strict=True)
    return {
        "recipe": {key: value for key, value in asdict(steps.recipes[0]).items() if key != "epochs"},
        "steps": [{"epochs": r.epochs, "kept": best_epoch(course), "course": course} for r, course in rows],
    }
