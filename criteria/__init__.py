"""Which filters of a network are important: criteria, the statistics they need, and how they agree."""

from criteria import activation, batchnorm, control, geometry, gradient, losses, magnitude, sensitivity, transforms
from criteria.clustering import Cluster, cluster, mean_spearman, redundancy, spearman, tail_overlap
from criteria.errors import CriterionError, CriterionValueError, GraphError
from criteria.graph import ChannelGraph, ChannelGroup, GroupNote, Member
from criteria.registry import CRITERIA, Criterion, Registry, register
from criteria.scores import Note, ScoreTable, normalise, score_table
from criteria.stats import NEEDS, GroupStats, collect

__all__ = [
    "CRITERIA",
    "NEEDS",
    "ChannelGraph",
    "ChannelGroup",
    "Cluster",
    "Criterion",
    "CriterionError",
    "CriterionValueError",
    "GraphError",
    "GroupNote",
    "GroupStats",
    "Member",
    "Note",
    "Registry",
    "ScoreTable",
    "activation",
    "batchnorm",
    "cluster",
    "collect",
    "control",
    "geometry",
    "gradient",
    "losses",
    "magnitude",
    "mean_spearman",
    "normalise",
    "redundancy",
    "register",
    "score_table",
    "sensitivity",
    "spearman",
    "tail_overlap",
    "transforms",
]
