"""The course of a search, generation by generation: how far, how diverse, and what its proposals were worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

from blend.limits import counted
from blend.progress import say
from blend.runs.folder import Run
from search.hypervolume import hypervolume

if TYPE_CHECKING:
    from search.archive import Archive, Evaluation
    from search.strategy import Strategy


def key(phase: str, generation: int) -> str:
    """Under which a generation's record is kept in the run."""
    return f"{phase}-course/{generation}"


def course(run: Run, phase: str = "search") -> list[dict[str, Any]]:
    """The records of all generations of the search, or of another phase."""
    records = (run.get(key(phase, generation)) for generation in count())
    return list(takewhile(lambda record: record is not None, records))


def generation_record(strategy: Strategy, batch: Sequence[Evaluation]) -> dict[str, Any]:
    """What is kept of a generation, beside its evaluations.

    Args:
        strategy: Just told of the generation.
        batch: The generation's evaluations.

    Returns:
        ``generation`` from 0, ``best`` fitness so far; of the generation the shares of different ``genomes`` and
        ``masks`` and of ``new`` ones, never judged before; how many were ``given_up`` before the end of the held-out
        data; of the population the ``entropy`` of choices and the
        ``spread`` of reals (see :func:`search.diversity.diversity`); how many genomes were ``proposed``, how many of
        them were ``known``, and by how much the next ones vary more (``boost``).
    """
    best, diversity = strategy.best, strategy.diversity()
    return {
        "generation": strategy.generation - 1,
        "best": best[1] if best else None,
        "genomes": len({tuple(e.genome or ()) for e in batch}) / len(batch),
        "masks": len({e.phenotype for e in batch}) / len(batch),
        "new": sum(not e.cached for e in batch) / len(batch),
        "given_up": sum(e.given_up and not e.cached for e in batch),
        "entropy": diversity["entropy"],
        "spread": diversity["spread"],
        **strategy.proposals(),
    }


def conquered(archive: Archive, phase: str, reductions: tuple[float, float]) -> float:
    """The hypervolume of a phase's front of reduction and fitness, as a share of a picture that is known before.

    It reaches from the lowest to the highest reduction, and from the weakest to the strongest of all that is judged
    before the search, which is usually the unpruned network.
    """
    low, high = reductions
    before = [e.fitness for e in archive.history("baseline") if e.error is None]
    weakest, strongest = min(before), max(before)
    front = [(min(e.details["reduction"], high), e.fitness) for e in archive.front("cost", phase)]
    return hypervolume(front, (low, weakest)) / ((high - low) * (strongest - weakest)) if strongest > weakest else 0.0


def say_when_dry(record: dict[str, Any], boost_before: float) -> None:
    """Tells when proposals begin to run dry, and when they bring something new again."""
    boost = record["boost"]
    if boost > boost_before == 1.0:
        say(
            f"note: in generation {record['generation'] + 1}, {record['known']} of {record['proposed']} proposals were "
            f"known already; from here on they vary more, until they bring something new again"
        )
    elif boost == 1.0 < boost_before:
        say(f"note: in generation {record['generation'] + 1} proposals bring something new again")


def course_in_words(records: Sequence[dict[str, Any]]) -> str:
    """Two sentences: how diverse the search was and is, and whether its proposals ran dry."""
    first, last = records[0], records[-1]
    proposed, known = (sum(record[name] for record in records) for name in ("proposed", "known"))
    dry = [record["generation"] + 1 for record in records if record["boost"] > 1.0]
    varied = f", and varied more after {counted(len(dry), 'generation')}, first {dry[0]}" if dry else ""
    return (
        f"Diversity of generation {last['generation'] + 1} (of the first): different genomes {last['genomes']:.0%} "
        f"({first['genomes']:.0%}), different masks {last['masks']:.0%} ({first['masks']:.0%}), entropy of choices "
        f"{last['entropy']:.2f} ({first['entropy']:.2f}), spread of reals {last['spread']:.2f} "
        f"({first['spread']:.2f}).\n{known} of {proposed} proposals were known already{varied}."
    )
