"""Words drawn on pictures, the same pixels wherever Pillow and the font that ships are the same."""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from shared.preprocessing import DrawnText

if TYPE_CHECKING:
    from PIL import Image, ImageFont

#: Noto Sans CJK SC, reduced to the common characters and renamed, as its licence asks (see fonts/README.md).
FONT = Path(__file__).with_name("fonts") / "TriviumSans.otf"

#: Side of the picture in a preview, and its grey.
_PREVIEW, _GREY = 448, (160, 160, 160)

#: Share of a band that is kept free at each side; smallest height of letters in pixels; an outline's share of it.
_MARGIN, _SMALLEST, _OUTLINE = 0.03, 4, 12

#: What no line begins with.
_NEVER_FIRST = " ，。、！？；：）》」』】〉…"


def draw_text(image: "Image.Image", drawn: DrawnText) -> "Image.Image":
    """The words on an RGB picture, in its centred square: no encoder cuts that off. Changes the picture itself.

    They are as large as the band of this height lets them be.
    """
    from PIL import ImageDraw

    side = min(image.size)
    margin = int(_MARGIN * side)
    room = max(side - 2 * margin, 1), max(int(drawn.height * side) - 2 * margin, 1)
    size, lines = _fitted(" ".join(drawn.text.split()), room)
    stroke, step = size // _OUTLINE, _step(size)
    free = {"top": margin, "middle": (side - step * len(lines)) // 2, "bottom": side - margin - step * len(lines)}
    top = (image.height - side) // 2 + free[drawn.place]
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        place = image.width / 2, top + number * step
        pen.text(place, line, drawn.colour, _font(size), anchor="ma", stroke_width=stroke, stroke_fill=drawn.outline)
    return image


def preview(drawn: DrawnText) -> str:
    """The words on an empty picture, as a data: URI of a PNG."""
    from PIL import Image

    target = io.BytesIO()
    draw_text(Image.new("RGB", (_PREVIEW, _PREVIEW), _GREY), drawn).save(target, "PNG")
    return f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"


def _fitted(text: str, room: tuple[int, int]) -> tuple[int, list[str]]:
    """The largest letters, in pixels, with which the words fit into [width, height], and the lines that they make."""
    low, high = _SMALLEST, max(room[1], _SMALLEST)
    while low < high:
        size = (low + high + 1) // 2
        lines = _lines(text, size, room[0])
        fits = _step(size) * len(lines) <= room[1] and all(_font(size).getlength(line) <= room[0] for line in lines)
        low, high = (size, high) if fits else (low, size - 1)
    return low, _lines(text, low, room[0])


def _lines(text: str, size: int, width: int) -> list[str]:
    """Broken between words, and anywhere between characters that are written without spaces."""
    lines = [""]
    for piece in _pieces(text):
        longer = lines[-1] + piece
        if lines[-1] and _font(size).getlength(longer.rstrip()) > width:
            lines.append(piece.lstrip())
        else:
            lines[-1] = longer
    return [line.rstrip() for line in lines]


def _pieces(text: str) -> list[str]:
    pieces: list[str] = []
    for character in text:
        inside = pieces and not _is_wide(character) and not _is_wide(pieces[-1][-1]) and not pieces[-1].endswith(" ")
        if inside or (pieces and character in _NEVER_FIRST):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _is_wide(character: str) -> bool:
    """Of a script that is broken anywhere: CJK, kana, hangul."""
    return "\u2e80" <= character <= "\ud7ff" or "\uf900" <= character <= "\uffef"


def _step(size: int) -> int:
    """From one line to the next, in pixels."""
    ascent, descent = _font(size).getmetrics()
    return ascent + descent


@lru_cache(maxsize=64)
def _font(size: int) -> "ImageFont.FreeTypeFont":
    from PIL import ImageFont

    # Not Raqm, which lays text out otherwise where it is installed.
    return ImageFont.truetype(FONT, size, layout_engine=ImageFont.Layout.BASIC)
