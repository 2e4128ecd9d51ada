"""Which channels hang together: integer labels walked through a torch.export graph.

Every output channel of every layer gets a label. Label tensors then travel beside the network's
values:

- an op that only moves data (view, permute, cat, chunk, pad, ...) is analysed by running that same
  op on labels (`movement`);
- an op that combines tensors element by element merges the labels that meet (`elementwise`);
- a layer reads labels along its weight's input dimension and makes new ones along its output
  dimension (`layers`);
- what is computed of parameters alone has labels along each of its dimensions (`weights`);
- whatever cannot shrink (the network's outputs, sizes written in the source, unknown ops) fixes its
  labels, with the reason.

A class of merged labels is one removable channel: positions in parameters that go together or not
at all (`union_find`).
"""

from mdcp_fast.tracing.labels.state import (
    ALONG,
    COMPUTED,
    INPUT,
    OUTPUT,
    REPEATED,
    Multiplication,
    Use,
    Walk,
)
from mdcp_fast.tracing.labels.union_find import Resolved
from mdcp_fast.tracing.labels.walk import walk_program

__all__ = [
    "ALONG",
    "COMPUTED",
    "INPUT",
    "OUTPUT",
    "REPEATED",
    "Multiplication",
    "Resolved",
    "Use",
    "Walk",
    "walk_program",
]
