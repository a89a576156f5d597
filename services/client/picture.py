"""A picture of a feature space: every item a badge at the place where t-SNE puts its fused vector."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from services.client.explore import FUSED, FeatureSpace, Vectors

#: Pixels. Badges are drawn at `_FINE` times their size and reduced, for smooth edges.
_SIZE, _BADGE, _RING, _FINE = (2000, 1500), 34, 3, 2
_DPI = 120
#: Share of a badge's inner width that its image takes: a little more than fits in the circle, since corners are empty.
_FILL = 0.8
_CAPTION = "t-SNE, badges that would overlap moved apart. A ring has the colour of the label; a plain dot has no image."
#: How often badges that overlap are moved apart.
_MOVES = 60


def draw(space: FeatureSpace, media: Mapping[str, bytes], path: Path, title: str) -> None:
    """Writes the picture to `path` as PNG. A badge has the colour of the item's label around its image.

    `media` holds encoded images by item id; an item without one is a plain dot.
    """
    labels = sorted(set(space.labels.tolist()))
    colours = {label: to_hex(colormaps["tab10"](place % 10)) for place, label in enumerate(labels)}
    canvas = Image.new("RGB", _SIZE, "white")
    for place, (x, y) in enumerate(_pixels(project(space.vectors[FUSED]))):
        badge = _badge(colours[space.labels[place]], media.get(space.ids[place]))
        canvas.paste(badge, (x, y), badge)
    width, height = _SIZE
    figure = Figure(figsize=(width / _DPI, height / _DPI * 1.1), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(np.asarray(canvas), interpolation="lanczos")
    axes.set_axis_off()
    axes.set_title(title, fontsize=16, pad=12)
    figure.text(0.01, 0.01, _CAPTION, fontsize=9, color="dimgrey")
    dots = [Line2D([], [], marker="o", linestyle="", markersize=10, color=colours[label]) for label in labels]
    figure.legend(dots, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False, fontsize=12)
    figure.savefig(path)


def project(vectors: Vectors) -> NDArray[np.float64]:
    """Vectors [n, d] to places [n, 2]: t-SNE (van der Maaten and Hinton 2008) of their first principal components."""
    components = min(30, *vectors.shape)
    # One thread: on so few points, more only wait for each other.
    with threadpool_limits(1):
        reduced = PCA(components, random_state=0, svd_solver="randomized").fit_transform(vectors)
        tsne = TSNE(perplexity=min(30, (len(vectors) - 1) / 3), init="pca", max_iter=500, random_state=0)
        return np.asarray(tsne.fit_transform(reduced), np.float64)


def _pixels(places: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The upper left corner of each badge; those that would overlap are moved apart."""
    room = np.array(_SIZE) - _BADGE
    corners = _fit(places, room)
    for _ in range(_MOVES):
        pairs = cKDTree(corners).query_pairs(_BADGE, output_type="ndarray")
        between = corners[pairs[:, 0]] - corners[pairs[:, 1]]
        distance = np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-6)
        push = between / distance * (_BADGE - distance) / 2
        np.add.at(corners, pairs[:, 0], push)
        np.subtract.at(corners, pairs[:, 1], push)
    return [(int(x), int(y)) for x, y in _fit(corners, room)]


def _fit(places: NDArray[np.float64], room: NDArray[np.int_]) -> NDArray[np.float64]:
    """The places scaled to a rectangle from the origin to `room`."""
    low, high = places.min(axis=0), places.max(axis=0)
    return np.asarray((places - low) / np.maximum(high - low, 1e-6) * room, np.float64)


def _badge(colour: str, media: bytes | None) -> Image.Image:
    size, ring = _BADGE * _FINE, _RING * _FINE
    badge = Image.new("RGBA", (size, size))
    pen = ImageDraw.Draw(badge)
    pen.ellipse((0, 0, size - 1, size - 1), fill=colour)
    if media is not None:
        inner = (ring, ring, size - 1 - ring, size - 1 - ring)
        pen.ellipse(inner, fill="white")
        side = int((size - 2 * ring) * _FILL)
        with Image.open(BytesIO(media)) as image:
            picture = image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
        corner = (size - side) // 2
        layer = Image.new("RGBA", badge.size)
        layer.paste(picture, (corner, corner), picture)
        mask = Image.new("L", badge.size)
        ImageDraw.Draw(mask).ellipse(inner, fill=255)
        badge.paste(layer, (0, 0), ImageChops.multiply(mask, layer.getchannel("A")))
    return badge.resize((_BADGE, _BADGE), Image.Resampling.LANCZOS)
