"""Whether pictures can be decoded to the last pixel, and their upright sizes.

What holds: a picture passes only when all of its pixels can be read, as training will read them; its header, and for
JPEG Pillow's `verify` too, say nothing about a file that was cut. Sizes are those of the pictures that the model is
given (`models.inputs.load_images`): EXIF orientation applied.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, Sequence

from PIL import Image, ImageOps

from data.coordinates import Size

#: Pictures decoded at a time. Threads suffice: Pillow releases the interpreter's lock while it decodes.
DECODERS = 4


class PictureError(ValueError):
    """A picture that cannot be decoded whole; the message is the decoder's reason, the caller says which picture."""


def decoded_size(path: str) -> Size:
    """(width, height) of the upright picture, all of which was decoded. PictureError where that fails."""
    try:
        with Image.open(path) as picture:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return picture.size
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise PictureError(f"{type(error).__name__}: {error}") from error


def decoded_sizes(paths: Sequence[str]) -> Iterator[Size | PictureError]:
    """`decoded_size` of every picture, in order, as they come; the error takes the place of the size."""
    with ThreadPoolExecutor(DECODERS) as pool:
        yield from pool.map(_size_or_error, paths)


def _size_or_error(path: str) -> Size | PictureError:
    try:
        return decoded_size(path)
    except PictureError as error:
        return error
