"""A picture of a feature space: every item a badge at the place where t-SNE puts its fused vector."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from services.client.demo.explore import FUSED, FeatureSpace, Vectors

Places = NDArray[np.float64]

#: Pixels. Badges are drawn at `_FINE` times their size and reduced, for smooth edges.
_MAP, _MARGIN, _BADGE, _RING, _FINE = (2000, 1500), 40, 34, 3, 2
#: Share of a badge's inner width that its image takes: a little more than fits in the circle, since corners are empty.
_FILL = 0.8
#: How often badges that overlap are moved apart.
_MOVES = 60
#: Paul Tol's "muted" scheme, which colour-blind people can tell apart, and a grey; labels beyond these share colours.
_COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#888888",
)  # fmt: skip
_LEGEND_COLUMNS = 5
_CAPTION = "t-SNE; badges that would overlap moved apart. Rings have the colour of the label; full dots have no image."


def draw(space: FeatureSpace, media: Mapping[str, bytes], path: Path, title: str) -> None:
    """Writes the picture to `path` as PNG. A badge has the colour of the item's label around its image.

    `media` holds encoded images by item id; an item without one is a full dot.
    """
    labels = sorted(set(space.labels.tolist()))
    colours = {label: _COLOURS[place % len(_COLOURS)] for place, label in enumerate(labels)}
    top, line = 100, 44
    rows = -(-len(labels) // _LEGEND_COLUMNS)
    size = (_MAP[0] + 2 * _MARGIN, top + _MAP[1] + line * (rows + 2))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((size[0] / 2, top / 2), title, "black", ImageFont.load_default(36), anchor="mm")
    for place, (x, y) in enumerate(_pixels(project(space.vectors[FUSED]))):
        badge = _badge(colours[str(space.labels[place])], media.get(space.ids[place]))
        canvas.paste(badge, (_MARGIN + x, top + y), badge)
    for place, label in enumerate(labels):
        x = _MARGIN + place % _LEGEND_COLUMNS * _MAP[0] // _LEGEND_COLUMNS
        y = top + _MAP[1] + line * (place // _LEGEND_COLUMNS + 1)
        canvas.paste(dot := _badge(colours[label], None), (x, y - _BADGE // 2), dot)
        pen.text((x + 1.5 * _BADGE, y), label, "black", ImageFont.load_default(26), anchor="lm")
    pen.text((_MARGIN, size[1] - line / 2), _CAPTION, "dimgrey", ImageFont.load_default(20), anchor="lm")
    canvas.save(path)


def project(vectors: Vectors) -> Places:
    """Vectors [n, d] to places [n, 2]: t-SNE (van der Maaten and Hinton 2008) of their first principal components."""
    components = min(30, *vectors.shape)
    # One thread: on so few points, more only wait for each other.
    with threadpool_limits(1):
        reduced = PCA(components, random_state=0, svd_solver="randomized").fit_transform(vectors)
        tsne = TSNE(perplexity=min(30, (len(vectors) - 1) / 3), init="pca", max_iter=500, random_state=0)
        return np.asarray(tsne.fit_transform(reduced), np.float64)


def _pixels(places: Places) -> list[tuple[int, int]]:
    """The upper left corner of each badge on the map; those that would overlap are moved apart."""
    corners = _fit(places)
    for _ in range(_MOVES):
        pairs = cKDTree(corners).query_pairs(_BADGE, output_type="ndarray")
        between = corners[pairs[:, 0]] - corners[pairs[:, 1]]
        distance = np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-6)
        push = between / distance * (_BADGE - distance) / 2
        np.add.at(corners, pairs[:, 0], push)
        np.subtract.at(corners, pairs[:, 1], push)
    return [(int(x), int(y)) for x, y in _fit(corners)]


def _fit(places: Places) -> Places:
    """The places scaled so that badges at them just fit on the map."""
    low, high = places.min(axis=0), places.max(axis=0)
    return np.asarray((places - low) / np.maximum(high - low, 1e-6) * (np.array(_MAP) - _BADGE), np.float64)


def open_picture(media: bytes, side: int) -> Image.Image:
    """An encoded image as a square on white."""
    with Image.open(BytesIO(media)) as image:
        layer = image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
    white = Image.new("RGB", (side, side), "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _badge(colour: str, media: bytes | None) -> Image.Image:
    size, ring = _BADGE * _FINE, _RING * _FINE
    badge = Image.new("RGBA", (size, size))
    ImageDraw.Draw(badge).ellipse((0, 0, size - 1, size - 1), fill=colour)
    if media is not None:
        inner = Image.new("L", badge.size)
        ImageDraw.Draw(inner).ellipse((ring, ring, size - 1 - ring, size - 1 - ring), fill=255)
        badge.paste("white", mask=inner)
        side = int((size - 2 * ring) * _FILL)
        layer = Image.new("RGBA", badge.size)
        with Image.open(BytesIO(media)) as image:
            layer.paste(image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS), ((size - side) // 2,) * 2)
        badge.paste(layer, mask=ImageChops.multiply(inner, layer.getchannel("A")))
    return badge.resize((_BADGE, _BADGE), Image.Resampling.LANCZOS)
