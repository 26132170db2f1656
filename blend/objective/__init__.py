"""From a genome to its fitness: what genes mean, the masks that they stand for, and the opponents among them."""

from blend.objective.phenotype import BlendObjective

__all__ = ["BlendObjective"]
