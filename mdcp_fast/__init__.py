"""Structured pruning of convolutional networks by multidimensional channel clustering."""

from mdcp_fast.data import load_data
from mdcp_fast.evaluation import evaluate
from mdcp_fast.finetune import finetune
from mdcp_fast.models import make_model

__all__ = [
    "evaluate",
    "finetune",
    "load_data",
    "make_model",
]
