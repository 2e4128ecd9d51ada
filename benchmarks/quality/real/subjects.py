"""What is on the photographs of gcompris-qt-data 3.1, by hand: who is who, and which class it is.

A photograph is named by its activity and its place among the activity's pictures.
"""

from __future__ import annotations

from collections.abc import Iterable

_MONUMENTS, _THINGS = "explore_monuments", "categorization"

# Monuments of which there are two pictures: (place in explore_monuments, place in categorization).
_TWICE = {
    "Eiffel tower": (5, 100),
    "Qutb Minar": (15, 102),
    "Mount Rushmore": (26, 117),
    "Statue of Liberty": (28, 99),
    "Taj Mahal": (37, 112),
    "Christ the Redeemer": (38, 109),
    "Colosseum": (39, 118),
    "Great Wall": (41, 119),
    "Brandenburg Gate": (46, 122),
}
# Things that a network is shown as one kind, though they are several: places in categorization.
_KINDS = {
    "windmill": (1, 3, 5, 8, 10, 12, 14, 15, 17, 19, 20, 23, 25, 26),
    "solar panel": (7, 13, 18, 24, 27),
    "solar cooker": (2, 6, 11),
    "dam": (0, 4, 9, 16, 22),
    "hammer": (29, 31, 42, 44, 51, 52, 60),
    "pliers": (30, 34, 38, 43, 53, 61),
    "tape measure": (32, 36, 46, 48, 57, 64),
    "scissors": (33, 47, 55, 65),
    "multimeter": (35, 59, 66),
    "screwdriver": (37, 40, 50, 58),
    "wrench": (39, 41),
    "tweezers": (45, 63),
    "toy blocks": (68, 124),
    "rainbow wrasse": (69, 72),
    "red reef fish": (71, 73),
    "garfish": (84, 87),
    "cutlery": (129, 137),
}
SUBJECT: dict[str, str] = {
    **{f"{_MONUMENTS}_{place}": subject for subject, (place, _) in _TWICE.items()},
    **{f"{_THINGS}_{place}": subject for subject, (_, place) in _TWICE.items()},
    **{f"{_MONUMENTS}_{place}": "pyramid" for place in (10, 11, 12, 13)},
    f"{_THINGS}_120": "pyramid",
    **{f"{_THINGS}_{place}": subject for subject, places in _KINDS.items() for place in places},
}

# Classes of ImageNet, in torchvision's order, that are right for an animal. A moose, a narwhal and
# giraffes have no class there.
CLASSES: dict[str, tuple[int, ...]] = {
    "explore_farm_animals_0": (97, 99),  # a white duck: drake, goose
    "explore_farm_animals_1": (345,),  # a cow: ox
    "explore_farm_animals_2": (348, 349),  # a sheep: ram, bighorn
    "explore_farm_animals_3": (339,),  # horses: sorrel
    "explore_farm_animals_4": (281, 282, 283, 284, 285),  # cats
    "explore_farm_animals_5": (7, 8),  # cock, hen
    "explore_farm_animals_6": (341, 342),  # hog, wild boar
    "explore_farm_animals_7": (235,),  # German shepherd
    "explore_farm_animals_8": (24,),  # an owl: great grey owl
    "explore_world_animals_0": (104,),  # a kangaroo: wallaby
    "explore_world_animals_2": (42,),  # a lizard: agama
    "explore_world_animals_3": (49, 50),  # African crocodile, American alligator
    "explore_world_animals_4": (334,),  # a hedgehog: porcupine, hedgehog
    "explore_world_animals_5": (88,),  # macaw
    "explore_world_animals_6": (105,),  # koala
    "explore_world_animals_7": (383,),  # ring-tailed lemurs: Madagascar cat
    "explore_world_animals_8": (48,),  # Komodo dragon
    "explore_world_animals_9": (296,),  # ice bear
    "explore_world_animals_10": (347,),  # bison
    "explore_world_animals_12": (288, 290),  # leopard, jaguar
    "explore_world_animals_13": (388,),  # giant panda
}


def by_subject(names: Iterable[str]) -> list[list[str]]:
    """The photographs that show the same, together; the others alone. In order of their names."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(SUBJECT.get(name, name), []).append(name)
    return list(groups.values())
