"""Scenes: what is where, in which style and artwork, what the caption says of it, and the picture with its truth.

Captions follow `[a|an] [color] SUBJECT [relation [a|an] [color] SUBJECT2 [relation ...]] [on BACKGROUND], STYLE`, with
slots left out at random.
"""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np

from attnctrl.embedded import styles_ink  # noqa: F401 (registers its styles)
from attnctrl.embedded.artwork import GENERATOR_SETS, SUBJECTS
from attnctrl.embedded.canvas import Array, Canvas, StyleParams, luma, mix, smoothstep
from attnctrl.embedded.colors import COLORS
from attnctrl.embedded.scenery import BACKGROUNDS, scenery
from attnctrl.embedded.styles import STYLES

SUBJECT_NAMES = tuple(subject.name for subject in SUBJECTS)
STYLE_NAMES = tuple(STYLES)
NAMED_STYLES = tuple(name for name, style in STYLES.items() if style.named)
RELATIONS = ("left of", "right of", "above", "below")
# width, height in pixels -> share of the pictures
SHAPES = {(64, 64): 0.5, (80, 48): 0.1, (48, 80): 0.1, (72, 56): 0.1, (56, 72): 0.1, (128, 32): 0.05, (32, 128): 0.05}
RECOLORABLE = frozenset(subject.name for subject in SUBJECTS if subject.recolor)


@dataclass(frozen=True)
class World:
    """A part of the world to draw scenes from.

    `pairs`, `backgrounds`, `colored` and `flips` are shares of the pictures, `threes` of the panoramas in a relation. A
    single object has a `size` between these shares of the short side, its centre strays by `stray` of the room left,
    and it turns by up to `tilt` degrees. Each of several fills `filled` of the largest size that fits its part.
    """

    subjects: tuple[str, ...] = SUBJECT_NAMES
    styles: tuple[str, ...] = STYLE_NAMES
    artworks: tuple[str, ...] = GENERATOR_SETS
    shapes: tuple[tuple[tuple[int, int], float], ...] = tuple(SHAPES.items())
    pairs: float = 0.21
    threes: float = 0.0
    backgrounds: float = 0.2
    colored: float = 0.35
    flips: float = 0.5
    size: tuple[float, float] = (0.55, 0.88)
    stray: float = 0.35
    tilt: float = 12.0
    filled: tuple[float, float] = (0.75, 1.0)


WHOLE = World()
# fmt: off
FIRST = World(
    subjects=("apple", "butterfly", "cactus", "car", "cat", "crown", "fish", "fox",
              "guitar", "house", "key", "mushroom", "penguin", "rocket", "star", "strawberry"),
    styles=("flat icon", "3d render", "comic", "sticker", "watercolor", "line art", "neon sign",
            "gold emboss", "linocut"),
    artworks=("flat", "twemoji"),
    shapes=tuple(zip(SHAPES, (0.88, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02), strict=True)),
    pairs=0.02,
    backgrounds=0.04,
    flips=0.0,
    size=(0.78, 0.86),
    stray=0.1,
    tilt=3.0,
)
# fmt: on
"""What the models learn first, on a CPU: fewer subjects, large and centred; styles vary as in the whole world."""
WIDER = replace(
    FIRST,
    styles=(*FIRST.styles, "paper cutout", "pixel art", "blueprint"),
    shapes=tuple(zip(SHAPES, (0.7, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05), strict=True)),
    pairs=0.25,
    backgrounds=0.1,
    size=(0.7, 0.88),
    stray=0.2,
    tilt=5.0,
)
"""What they learn next: pairs in a relation, aspect ratios, backdrops and three more styles."""
PAIRED = replace(
    WIDER,
    shapes=tuple(zip(SHAPES, (0.64, 0.06, 0.06, 0.06, 0.06, 0.06, 0.06), strict=True)),
    pairs=0.66,
    threes=0.4,
    colored=0.6,
    filled=(0.92, 1.05),
)
"""What the shipped models are shown: two objects in most pictures, large in their halves, many with own colors."""
WORLDS = {"first": FIRST, "wider": WIDER, "paired": PAIRED, "whole": WHOLE}


@dataclass(frozen=True)
class Object:
    """One subject in a scene; everything but subject and color is identity or layout that captions leave open.

    `center` and `size` (of the longer side) are in pixels of the picture, `rotation` in degrees, `marking` in [-1, 1].
    """

    subject: str
    color: str | None
    artwork: str
    flip: bool
    rotation: float
    marking: float
    center: tuple[float, float]
    size: float


@dataclass(frozen=True)
class Scene:
    """A picture's whole ground truth; `seed` draws the style's grain."""

    width: int
    height: int
    objects: tuple[Object, ...]
    relation: str | None
    background: str | None
    style: str
    params: StyleParams
    caption: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Picture:
    """A rendered scene: image uint8 [H, W, 3], masks float [objects, H, W] (visible parts), boxes x0, y0, x1, y1."""

    image: Array
    masks: Array
    boxes: tuple[tuple[int, int, int, int], ...]


def held_out(subject: str, style: str) -> bool:
    """Whether a (subject, style) pair is never shown in training (a fixed tenth of all pairs)."""
    return hashlib.sha256(f"{subject}|{style}".encode()).digest()[0] % 10 == 0


def article(words: str) -> str:
    """The words with their indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption_of(scene: Scene, *, color: bool = True, background: bool = True, style: bool = True) -> str:
    """The scene's caption with the wanted slots; styles without a name are never written."""
    noun = [f"{thing.color} {thing.subject}" if color and thing.color else thing.subject for thing in scene.objects]
    text = article(noun[0])
    for other in noun[1:]:
        text += f" {scene.relation} {article(other)}"
    if background and scene.background:
        text += f" on {BACKGROUNDS[scene.background]}"
    if style and STYLES[scene.style].named:
        text += f", {scene.style}"
    return text


def _object(rng: np.random.Generator, subject: str, style: str, world: World) -> Object:
    colored = STYLES[style].colors and subject in RECOLORABLE and rng.random() < world.colored
    return Object(
        subject=subject,
        color=str(rng.choice(list(COLORS))) if colored else None,
        artwork=str(rng.choice(world.artworks)),
        flip=bool(rng.random() < world.flips),
        rotation=float(rng.uniform(-world.tilt, world.tilt)),
        marking=float(rng.uniform(-1, 1)),
        center=(0.0, 0.0),
        size=0.0,
    )


def _place(
    rng: np.random.Generator, things: list[Object], relation: str | None, width: int, height: int, world: World
) -> list[Object]:
    short = min(width, height)
    if relation is None:
        size = short * rng.uniform(*world.size)
        room_x, room_y = width - size, height - size
        low, high = 0.5 - world.stray, 0.5 + world.stray
        center = (size / 2 + room_x * rng.uniform(low, high), size / 2 + room_y * rng.uniform(low, high))
        return [replace(things[0], center=center, size=float(size))]
    across = relation in ("left of", "right of")
    along, wide = (width, height) if across else (height, width)
    part = along / len(things)
    most = min(part, wide) * 0.95
    placed = []
    for i, thing in enumerate(things):
        size = most * rng.uniform(*world.filled)
        low = part * (i if relation in ("left of", "above") else len(things) - 1 - i)
        room = max(0.0, part - size) / 2
        position = low + part / 2 + rng.uniform(-room, room)
        other = np.clip(wide / 2 + (wide - size) * rng.uniform(-0.35, 0.35), size / 2, wide - size / 2)
        center = (position, float(other)) if across else (float(other), position)
        placed.append(replace(thing, center=center, size=float(size)))
    return placed


def sample(rng: np.random.Generator, world: World = WHOLE, *, held: bool = False) -> Scene:
    """Draw a scene with its caption; with `held`, one object of a held-out (subject, style) pair on a square."""
    shapes, shares = zip(*world.shapes, strict=True)
    width, height = (64, 64) if held else shapes[rng.choice(len(shapes), p=shares)]
    style = str(rng.choice(world.styles))
    allowed = [name for name in world.subjects if held_out(name, style) == held]
    if not allowed:
        return sample(rng, world, held=held)
    panorama = max(width, height) >= 3 * min(width, height)
    relation = None
    if not held and rng.random() < (0.85 if panorama else world.pairs):
        pair = RELATIONS[:2] if width > height else RELATIONS[2:] if height > width else RELATIONS
        relation = str(rng.choice(pair))
    things = [_object(rng, str(rng.choice(allowed)), style, world)]
    if relation and panorama and rng.random() < 0.35:
        things.append(
            replace(
                things[0], flip=bool(rng.random() < world.flips), rotation=float(rng.uniform(-world.tilt, world.tilt))
            )
        )
    elif relation:
        others = 2 if panorama and world.threes and rng.random() < world.threes else 1
        things += [_object(rng, str(rng.choice(allowed)), style, world) for _ in range(others)]
    scene = Scene(
        width=width,
        height=height,
        objects=tuple(_place(rng, things, relation, width, height, world)),
        relation=relation,
        background=str(rng.choice(list(BACKGROUNDS))) if rng.random() < world.backgrounds else None,
        style=style,
        params=StyleParams.sample(rng),
        caption="",
        seed=int(rng.integers(2**31)),
    )
    keep = rng.random(4)
    if keep[0] < 0.1:
        return scene
    caption = caption_of(scene, color=bool(keep[1] > 0.1), background=bool(keep[2] > 0.1), style=bool(keep[3] > 0.1))
    return replace(scene, caption=caption)


def _hue_rotation(turns: float) -> Array:
    """The matrix that turns RGB about the grey axis, [3, 3]."""
    c, s = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    third, root = (1 - c) / 3, s / np.sqrt(3)
    low, high = third - root, third + root
    return np.array([[c + third, low, high], [high, c + third, low], [low, high, c + third]], np.float32)


def _tint(rgb: Array, color: str) -> Array:
    """Coloured pixels take the named colour and keep their lightness; greys stay."""
    hue, saturation = COLORS[color]
    top = rgb.max(axis=2)
    spread = (top - rgb.min(axis=2)) / np.maximum(top, 1e-3)
    pure = np.array(colorsys.hsv_to_rgb(hue, saturation, 1.0 if saturation else 0.72), np.float32)
    light = (0.25 + 0.85 * luma(rgb))[..., None]
    body = np.where(light < 0.8, pure * light / 0.8, pure + (1 - pure) * (light - 0.8) / 0.45)
    return mix(rgb, np.clip(body, 0, 1), smoothstep(0.15, 0.4, spread))


def _draw(thing: Object, art: Array, width: int, height: int) -> Array:
    """The object's premultiplied RGBA on a double-size canvas, float [2H, 2W, 4]."""
    picture = art.astype(np.float32) / 255
    rgb = picture[..., :3]
    marked = np.clip(rgb @ _hue_rotation(0.05 * thing.marking).T, 0, 1)
    rgb = _tint(rgb, thing.color) if thing.color else marked
    picture = np.dstack([rgb * picture[..., 3:], picture[..., 3]])
    side = max(4, round(2 * thing.size))
    small: Array = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    if thing.flip:
        small = small[:, ::-1]
    matrix = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), thing.rotation, 0.94)
    matrix = matrix + np.array([[0, 0, 2 * thing.center[0] - side / 2], [0, 0, 2 * thing.center[1] - side / 2]])
    return cv2.warpAffine(np.ascontiguousarray(small), matrix, (2 * width, 2 * height))


def render(scene: Scene, artwork: dict[str, Array]) -> Picture:
    """Compose the objects, paint them in the scene's style at double size and halve it."""
    rng = np.random.default_rng(scene.seed)
    total = np.zeros((2 * scene.height, 2 * scene.width, 4), np.float32)
    alphas: list[Array] = []
    for thing in scene.objects:
        layer = _draw(thing, artwork[f"{thing.artwork}/{thing.subject}"], scene.width, scene.height)
        alphas = [alpha * (1 - layer[..., 3]) for alpha in alphas] + [layer[..., 3]]
        total = layer + total * (1 - layer[..., 3:])
    behind = scenery(scene.background, total.shape[:2], rng) if scene.background else None
    canvas = Canvas(total[..., :3], total[..., 3], behind)
    painted = np.clip(STYLES[scene.style].paint(canvas, scene.params, rng), 0, 1).astype(np.float32)
    size = (scene.width, scene.height)
    image = np.round(cv2.resize(painted, size, interpolation=cv2.INTER_AREA) * 255).astype(np.uint8)
    masks = np.stack([cv2.resize(alpha, size, interpolation=cv2.INTER_AREA) for alpha in alphas])
    return Picture(image, masks, tuple(_box(mask) for mask in masks))


def _box(mask: Array) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((mask > 0.5).any(1))[0], np.nonzero((mask > 0.5).any(0))[0]
    if len(rows) == 0:
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
