"""Which filters of a network are important: criteria, the statistics they need, and how they agree."""

from criteria import (
    ablation,
    activation,
    batchnorm,
    control,
    geometry,
    gradient,
    learned,
    losses,
    magnitude,
    reconstruction,
    sensitivity,
    transforms,
)
from criteria.clustering import Cluster, cluster, mean_spearman, redundancy, spearman, tail_overlap
from criteria.errors import CriterionError, CriterionValueError, GraphError
from criteria.graph import ChannelGraph, ChannelGroup, GroupNote, Member
from criteria.passes import Network, PassCriterion, register_pass
from criteria.registry import CRITERIA, Criterion, Registry, register
from criteria.scores import Note, ScoreTable, normalise, score_table
from criteria.scoring import score
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
    "Network",
    "Note",
    "PassCriterion",
    "Registry",
    "ScoreTable",
    "ablation",
    "activation",
    "batchnorm",
    "cluster",
    "collect",
    "control",
    "geometry",
    "gradient",
    "learned",
    "losses",
    "magnitude",
    "mean_spearman",
    "normalise",
    "reconstruction",
    "redundancy",
    "register",
    "register_pass",
    "score",
    "score_table",
    "sensitivity",
    "spearman",
    "tail_overlap",
    "transforms",
]
