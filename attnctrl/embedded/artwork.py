"""Emoji artwork: openly licensed sets, rendered once to RGBA arrays and cached.

The sets come from the npm registry: Iconify's SVG bodies (rendered by resvg) and Fluent 3D's webp pictures.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnctrl.embedded import CACHE as CACHE
from attnctrl.errors import ControlError

SIZE = 128

# set name -> npm package, version
PACKAGES = {
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "fluent3d": ("@lobehub/fluent-emoji-3d", "1.1.0"),
    "noto": ("@iconify-json/noto", "1.2.9"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "notov1": ("@iconify-json/noto-v1", "1.2.5"),
    "emojione": ("@iconify-json/emojione", "1.2.3"),
    "monotone": ("@iconify-json/emojione-monotone", "1.2.1"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2"),
    "streamline": ("@iconify-json/streamline-emojis", "1.2.4"),
}
GENERATOR_SETS = ("flat", "fluent3d", "noto", "twemoji")
JUDGE_SETS = ("notov1", "emojione", "monotone", "fxemoji", "streamline")
PARTIAL_SETS = ("fxemoji", "streamline")
"""Sets that do not have every subject."""


@dataclass(frozen=True)
class Subject:
    """A thing that a caption can name: its word, its codepoint, its Iconify slugs, whether it may be recoloured."""

    name: str
    codepoint: str
    slugs: tuple[str, ...]
    recolor: bool


def _table(text: str) -> tuple[Subject, ...]:
    rows = []
    for line in text.split("\n"):
        if line.strip():
            name, codepoint, slugs, recolor = (part.strip() for part in line.split("|"))
            rows.append(Subject(name, codepoint, tuple(slugs.split()), recolor == "y"))
    return tuple(rows)


SUBJECTS = _table("""
fox | 1f98a | fox fox-face foxgrin | y
cat | 1f431 | cat-face cat | y
dog | 1f436 | dog-face dog | y
rabbit | 1f430 | rabbit-face | n
panda | 1f43c | panda panda-face | n
owl | 1f989 | owl | y
penguin | 1f427 | penguin | n
duck | 1f986 | duck | n
frog | 1f438 | frog frog-face | y
fish | 1f41f | fish | y
octopus | 1f419 | octopus | y
butterfly | 1f98b | butterfly | y
turtle | 1f422 | turtle | y
snail | 1f40c | snail | n
apple | 1f34e | red-apple | y
banana | 1f34c | banana | y
lemon | 1f34b | lemon | y
strawberry | 1f353 | strawberry | n
pineapple | 1f34d | pineapple | n
watermelon | 1f349 | watermelon | n
mushroom | 1f344 | mushroom | y
croissant | 1f950 | croissant | y
cake | 1f382 | birthday-cake | n
ice cream | 1f366 | soft-ice-cream | n
guitar | 1f3b8 | guitar | y
violin | 1f3bb | violin | y
trumpet | 1f3ba | trumpet | y
balloon | 1f388 | balloon | y
sailboat | 26f5 | sailboat | n
mountain | 1f3d4 | snow-capped-mountain | n
house | 1f3e0 | house house-building house-with-garden | n
castle | 1f3f0 | castle | n
tree | 1f333 | deciduous-tree | y
cactus | 1f335 | cactus | y
sunflower | 1f33b | sunflower | n
rose | 1f339 | rose | n
umbrella | 2602 | umbrella | y
key | 1f511 | key | y
rocket | 1f680 | rocket | n
car | 1f697 | automobile | y
bicycle | 1f6b2 | bicycle | y
crown | 1f451 | crown | y
star | 2b50 | star white-medium-star | y
moon | 1f319 | crescent-moon | y
anchor | 2693 | anchor | y
light bulb | 1f4a1 | light-bulb | n
snowman | 26c4 | snowman-without-snow | n
heart | 2764 | red-heart | y
""")


def fetch(folder: Path) -> None:
    """Bring the missing tarballs into `folder` with `npm pack NAME@VERSION`."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, version in PACKAGES.values():
        if not _tarball(folder, package, version).exists():
            subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True)


def _tarball(folder: Path, package: str, version: str) -> Path:
    return folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"


def _square(picture: Image.Image) -> np.ndarray:
    """Crop to the drawn part and pad to a square of SIZE px with a one-pixel rim: uint8 [SIZE, SIZE, 4]."""
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    scale = (SIZE - 2) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(picture, ((SIZE - width) // 2, (SIZE - height) // 2))
    return np.asarray(square)


def _spellings(subject: Subject) -> Iterator[str]:
    """The icon names to look for: as they are, as Firefox OS writes them, as Streamline numbers them."""
    for slug in subject.slugs:
        yield from (slug, slug.replace("-", ""), f"{slug}-1")


def _iconify(tarball: Path) -> dict[str, np.ndarray]:
    import resvg_py

    with tarfile.open(tarball) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        data = json.load(member)
    icons, aliases, found = data["icons"], data.get("aliases", {}), {}
    for subject in SUBJECTS:
        for slug in _spellings(subject):
            name = slug if slug in icons else aliases.get(slug, {}).get("parent")
            if name not in icons:
                continue
            icon = icons[name]
            left, top = icon.get("left", 0), icon.get("top", 0)
            width = icon.get("width", data.get("width", 16))
            height = icon.get("height", data.get("height", 16))
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
            )
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE))
            found[subject.name] = _square(Image.open(io.BytesIO(png)).convert("RGBA"))
            break
    return found


def _webp(tarball: Path) -> dict[str, np.ndarray]:
    found = {}
    with tarfile.open(tarball) as archive:
        members = (name for name in archive.getnames() if name.endswith(".webp"))
        names = {Path(name).stem.replace("-fe0f", ""): name for name in members}
        for subject in SUBJECTS:
            if subject.codepoint in names:
                member = archive.extractfile(names[subject.codepoint])
                assert member is not None
                found[subject.name] = _square(Image.open(io.BytesIO(member.read())).convert("RGBA"))
    return found


def build(folder: Path, cache: Path) -> Path:
    """Render all subjects of all sets from the tarballs in `folder` into one npz: `SET/SUBJECT` -> [128, 128, 4].

    LookupError where a set that should be whole lacks a subject.
    """
    arrays: dict[str, Any] = {}
    for name, (package, version) in PACKAGES.items():
        tarball = _tarball(folder, package, version)
        found = _webp(tarball) if name == "fluent3d" else _iconify(tarball)
        missing = [subject.name for subject in SUBJECTS if subject.name not in found]
        if missing and name not in PARTIAL_SETS:
            raise LookupError(f"{package} has no picture of: {', '.join(missing)}")
        arrays.update({f"{name}/{subject}": picture for subject, picture in found.items()})
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(cache, **arrays)
    return cache


def load(cache: Path | None = None) -> dict[str, np.ndarray]:
    """The cached artwork, `SET/SUBJECT` -> uint8 RGBA [128, 128, 4]."""
    cache = cache or CACHE / "artwork.npz"
    if not cache.exists():
        raise ControlError(f"there is no artwork at {cache}: run `attnctrl embedded artwork` first")
    with np.load(cache) as data:
        return {name: data[name] for name in data.files}
