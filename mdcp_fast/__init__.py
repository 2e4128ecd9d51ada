"""Structured pruning of convolutional networks by multidimensional channel clustering."""

from mdcp_fast.artifacts import load, save
from mdcp_fast.data import load_data
from mdcp_fast.evaluation import evaluate
from mdcp_fast.evolution import differential_evolution
from mdcp_fast.finetune import finetune
from mdcp_fast.graph import ChannelGraph, count_macs, trace
from mdcp_fast.models import make_model
from mdcp_fast.ops.crowding import crowding_distance
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.ops.population import evaluate_population
from mdcp_fast.ops.population_norm import population_norm
from mdcp_fast.ops.statistics import channel_statistics
from mdcp_fast.ops.ward import ward
from mdcp_fast.plan import PruningPlan
from mdcp_fast.search import search
from mdcp_fast.surgery import prune

__version__ = "0.1.0"

__all__ = [
    "ChannelGraph",
    "PruningPlan",
    "channel_statistics",
    "count_macs",
    "crowding_distance",
    "differential_evolution",
    "evaluate",
    "evaluate_population",
    "finetune",
    "kmeans",
    "load",
    "load_data",
    "make_model",
    "population_norm",
    "prune",
    "save",
    "search",
    "trace",
    "ward",
]
