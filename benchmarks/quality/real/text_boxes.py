"""Boxes of text from CRAFT's two heat maps, and how well two sets of boxes agree.

After `getDetBoxes` of EasyOCR's craft_utils.py, with its thresholds, without OpenCV: boxes stand
upright, where there they are turned with the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside

# A pixel belongs to a word where the map of letters, or that of links, is above this; a word is
# one where the map of letters is somewhere above SURE.
LETTER, LINK, SURE = 0.4, 0.4, 0.7
SMALLEST = 10  # pixels of a word
OVERLAP = 0.5  # intersection over union of boxes that are the same


def boxes(letters: np.ndarray, links: np.ndarray) -> list[Box]:
    """The words that two maps show.

    Args:
        letters: [height, width], about 1 in the middle of letters.
        links: [height, width], about 1 between letters of a word.
    """
    letter, link = letters > LETTER, links > LINK
    words, _ = ndimage.label(letter | link)  # neighbours are those at the four sides
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(words), start=1):
        own = words[rows, columns] == number
        size = int(own.sum())
        if size < SMALLEST or letters[rows, columns][own].max() < SURE:
            continue
        inside = np.argwhere(own & letter[rows, columns]) + (rows.start, columns.start)
        # The maps shrink letters: a word grows by as much as it is thick.
        height, width = own.shape
        grow = int(2 * math.sqrt(size * min(height, width) / (height * width)))
        before, after = grow // 2, (grow + 1) // 2  # as a rectangle of grow + 1 pixels dilates it
        top, left = np.maximum(inside.min(0) - before, 0)
        bottom, right = np.minimum(inside.max(0) + after + 1, words.shape)
        found.append((int(left), int(top), int(right), int(bottom)))
    return found


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def matched(found: Sequence[Box], wanted: Sequence[Box]) -> int:
    """How many boxes are the same, each counted once, the best overlaps first."""
    pairs = sorted(
        ((overlap(f, w), i, j) for i, f in enumerate(found) for j, w in enumerate(wanted)),
        key=lambda pair: (-pair[0], *pair[1:]),
    )
    left, right = set(range(len(found))), set(range(len(wanted)))
    same = 0
    for share, i, j in pairs:
        if share >= OVERLAP and i in left and j in right:
            left.remove(i)
            right.remove(j)
            same += 1
    return same


def f1(pairs: Iterable[tuple[Sequence[Box], Sequence[Box]]]) -> float:
    """F1 of boxes over all images; 1 where there are none at all.

    Args:
        pairs: Of every image, what was found and what was wanted.
    """
    same = total = 0
    for found, wanted in pairs:
        same += matched(found, wanted)
        total += len(found) + len(wanted)
    return 2 * same / total if total else 1.0
