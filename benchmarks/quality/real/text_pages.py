"""Pages of text for a text detector, drawn by PIL: as many as one likes, without labels.

Words of random syllables in random fonts, sizes, colours and places, some lines turned, on plain
ground, on a ramp of colours or on a photograph; every fourth image is a photograph without a page.
"""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from photographs import pixels, random_crop
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SYLLABLES = (
    *("an", "ar", "be", "co", "da", "en", "er", "fo", "ga", "he", "in", "ka", "la", "le", "ma"),
    *("mo", "na", "ne", "on", "or", "pa", "po", "qui", "ra", "re", "ri", "sa", "se", "ta", "te"),
    *("ti", "to", "un", "ve", "vi", "wa", "za", "the", "ing", "str", "ch"),
)
SIZES = (11, 34)  # pixels of a letter, drawn from small to large with ever fewer of the large
LINES = (2, 9)
CONTRAST = 90  # between the ground and the letters, of 255


@functools.cache
def fonts() -> tuple[str, ...]:
    """Files of fonts, the same on every machine: matplotlib's, or none without it."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        return ()
    folder = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    # Display fonts are left out: they lack letters.
    return tuple(
        str(path) for path in sorted(folder.glob("DejaVu*.ttf")) if "Display" not in str(path)
    )


@functools.cache
def font(path: str | None, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """A font in a size; None for PIL's own."""
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def pages(files: Sequence[Path], count: int, size: int, seed: str) -> Tensor:
    """Pages of text and photographs.

    An image depends on the seed and its place alone, so fewer images are the first of more.

    Args:
        files: Photographs, for grounds and for images without a page.
        count: How many images.
        size: Their height and width.
        seed: Of all that is random.

    Returns:
        uint8 [count, 3, size, size].
    """
    made = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for place in range(count):
        draw = random.Random(f"{seed} {place}")
        photograph = Image.open(files[place % len(files)]).convert("RGB")
        crop = random_crop(photograph, size, draw)
        made[place] = pixels(crop if place % 4 == 3 else page(crop, draw))
    return made


def page(crop: Image.Image, draw: random.Random) -> Image.Image:
    """A page of text, on a crop of a photograph or on ground of the same size."""
    ground = _ground(crop, draw)
    at = draw.randint(0, 20)
    for _ in range(draw.randint(*LINES)):
        height = round(SIZES[0] * (SIZES[1] / SIZES[0]) ** (draw.random() ** 1.5))
        if at + height >= ground.height:
            break
        _line(ground, at, height, draw)
        at += round(height * draw.uniform(1.2, 2.2))
    return ground


def _ground(crop: Image.Image, draw: random.Random) -> Image.Image:
    kind = draw.random()
    if kind < 0.4:
        return crop.copy()
    first, second = (tuple(draw.randint(0, 255) for _ in range(3)) for _ in range(2))
    plain = Image.new("RGB", crop.size, first)
    if kind < 0.7:
        return plain
    ramp = Image.linear_gradient("L").resize(crop.size)
    if draw.random() < 0.5:
        ramp = ramp.transpose(Image.Transpose.ROTATE_90)
    # Half way to the second colour, so that one colour of letters is read on all of it.
    return Image.composite(
        Image.blend(plain, Image.new("RGB", crop.size, second), 0.5), plain, ramp
    )


def _line(ground: Image.Image, top: int, height: int, draw: random.Random) -> None:
    """Draws a line of words onto the ground, some of them turned by a few degrees."""
    chosen = font(draw.choice((None, *fonts())), height)
    text = " ".join(_word(draw) for _ in range(draw.randint(1, 5)))
    left = draw.randint(0, ground.width // 3)
    across = max(round(chosen.getlength(text)), 1) + 4
    mask = Image.new("L", (across, height * 2), 0)
    ImageDraw.Draw(mask).text((2, height // 4), text, fill=255, font=chosen)
    if draw.random() < 0.3:
        turn = draw.uniform(-12, 12)
        mask = mask.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    ground.paste(_ink(ground, left, top, mask, draw), (left, top), mask)


def _word(draw: random.Random) -> str:
    if draw.random() < 0.15:
        return str(draw.randint(0, 99999))
    word = "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(1, 4)))
    return draw.choice((word, word, word.capitalize(), word.upper()))


def _ink(
    ground: Image.Image, left: int, top: int, mask: Image.Image, draw: random.Random
) -> tuple[int, ...]:
    """A colour that is far from what is there."""
    there = (
        ground.crop((left, top, left + mask.width, top + mask.height))
        .resize((1, 1))
        .getpixel((0, 0))
    )
    bright = sum(there) / 3
    colour = [draw.randint(0, 255) for _ in range(3)]
    away = (sum(colour) / 3) - bright
    if abs(away) < CONTRAST:
        shift = (CONTRAST if bright < 128 else -CONTRAST) - away
        colour = [min(max(round(part + shift), 0), 255) for part in colour]
    return tuple(colour)
