"""The contact sheet of a card: pictures as rows show them, with their boxes and labels."""

from __future__ import annotations

from typing import Sequence

from PIL import Image, ImageDraw

from data.coordinates import rescaled
from data.types import Example
from models.inputs import MediaError, load_images

COLUMNS = 4
#: Sides of a picture on the sheet, pixels, and of the space around it.
WIDTH, HEIGHT, MARGIN = 240, 200, 6
_PAPER, _INK, _BOX, _MISSING = (250, 250, 248), (30, 30, 30), (226, 60, 40), (160, 160, 160)


def contact_sheet(rows: Sequence[Example]) -> Image.Image:
    """The first picture of every row, numbered from 1, `COLUMNS` or fewer in a line; a grey field where it is unreadable.

    ValueError without rows.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    lines = -(-len(rows) // COLUMNS)
    size = (min(len(rows), COLUMNS) * (WIDTH + MARGIN) + MARGIN, lines * (HEIGHT + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    for place, row in enumerate(rows):
        line, column = divmod(place, COLUMNS)
        sheet.paste(_thumbnail(row, place + 1), (MARGIN + column * (WIDTH + MARGIN), MARGIN + line * (HEIGHT + MARGIN)))
    return sheet


def _thumbnail(row: Example, number: int) -> Image.Image:
    try:
        (picture,) = load_images(row.media[:1])
    except MediaError:
        tile = Image.new("RGB", (WIDTH, HEIGHT), _MISSING)
    else:
        tile = _with_boxes(picture, row)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, HEIGHT - 13, 8 + 7 * len(str(number)), HEIGHT), fill=_PAPER)
    draw.text((3, HEIGHT - 13), str(number), fill=_INK)
    return tile


def _with_boxes(picture: Image.Image, row: Example) -> Image.Image:
    scale = min(WIDTH / picture.width, HEIGHT / picture.height)
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    tile = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    tile.paste(small, (0, 0))
    draw = ImageDraw.Draw(tile)
    for box in row.boxes:
        x1, y1, x2, y2 = rescaled(box.bbox, picture.size, small.size)
        draw.rectangle((x1, y1, x2, y2), outline=_BOX, width=2)
        draw.rectangle(draw.textbbox((x1 + 3, y1 + 1), box.label), fill=_BOX)
        draw.text((x1 + 3, y1 + 1), box.label, fill=_PAPER)
    return tile
