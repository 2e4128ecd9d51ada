"""Structured pruning of convolutional networks by multidimensional channel clustering."""

from mdcp_fast.app.compress import Compressed, CompressionReport, CompressionStep, compress
from mdcp_fast.app.datasets import load_data
from mdcp_fast.app.models import make_model
from mdcp_fast.deployment.export import ExportReport, export
from mdcp_fast.modules.calls import count_macs
from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.evaluate_population import evaluate_population
from mdcp_fast.ops.evolution import Evolution, differential_evolution
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.ops.population_norm import population_norm
from mdcp_fast.ops.ward import ward
from mdcp_fast.planning.descriptors import Descriptor, Descriptors
from mdcp_fast.planning.evaluators import NetworkEvaluator, RefitEvaluator, TableEvaluator
from mdcp_fast.planning.latency import calibrate_latency, measure_latency, time_plans
from mdcp_fast.planning.latency_table import LatencyTable
from mdcp_fast.planning.method import Method
from mdcp_fast.planning.search import search
from mdcp_fast.planning.selection import Clusters, SelectionRule
from mdcp_fast.planning.widths import Minimizer
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.serialization import load, save
from mdcp_fast.tracing.cost import ParameterUse, register_cost
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace
from mdcp_fast.training.evaluation import evaluate
from mdcp_fast.training.finetune import finetune
from mdcp_fast.training.mimic import MimicHistory
from mdcp_fast.training.onednn import strided_by_slices

__version__ = "0.1.0"

__all__ = [
    "CalibrationData",
    "ChannelGraph",
    "Clusters",
    "Compressed",
    "CompressionReport",
    "CompressionStep",
    "Descriptor",
    "Descriptors",
    "Evolution",
    "ExportReport",
    "LatencyTable",
    "Method",
    "MimicHistory",
    "Minimizer",
    "NetworkEvaluator",
    "ParameterUse",
    "PruningPlan",
    "RefitEvaluator",
    "SelectionRule",
    "TableEvaluator",
    "calibrate_latency",
    "channel_statistics",
    "compress",
    "count_macs",
    "crowding_distance",
    "differential_evolution",
    "evaluate",
    "evaluate_population",
    "export",
    "finetune",
    "kmeans",
    "load",
    "load_data",
    "make_model",
    "measure_latency",
    "population_norm",
    "prune",
    "register_cost",
    "save",
    "search",
    "strided_by_slices",
    "time_plans",
    "trace",
    "ward",
]
