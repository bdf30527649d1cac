"""The embedded world's judges on a picture and its edit: what is read as asked, and where things stand."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ...embedded.backdrops import NAMES, Backdrops
from ...embedded.canvas import Array
from ...embedded.judge import Judge
from ...embedded.scenes import PAIRED
from ...embedded.subjects import COLOR_NAMES, FINE, PAIR_SCALES, SUBJECTS, Seen, SubjectJudge, all_found, in_order
from ...errors import ControlError
from .sets import EditCase, Shown

LARGEST, CELL = 128, 8
CHANGED = {"change color": "color", "change style": "style", "change background": "background"}
"""What an edit of a kind is to change; subjects, in their order, for all others."""
Right = dict[str, bool]
"""Whether each thing that was asked for is read: `subject`, `color`, `style`, `background`."""


class Jury:
    """All judges; one picture is read once for all that is asked about it."""

    def __init__(self) -> None:
        self.subjects, self.styles, self.backdrops = SubjectJudge.load(), Judge.load(), Backdrops.load()
        self._read: dict[tuple[int, bool], tuple[Image.Image, Seen]] = {}

    def right(self, picture: Image.Image, shown: Shown, small: bool) -> Right:
        """What is read as asked, of what `shown` asks for; `small`: several things stand in the picture, or did.

        ControlError for sizes that the judges do not know.
        """
        seen, image = self.seen(picture, small), np.asarray(picture.convert("RGB"))
        found = {"subject": _subjects(seen, shown, small)}
        if any(shown.colors):
            found["color"] = _colors(seen, shown)
        if shown.style is not None:
            found["style"] = self.styles.named(image[None], PAIRED.styles) == [shown.style]
        if shown.background is not None and shown.style is not None:
            objects = self.where(picture, shown.subjects, small)
            found["background"] = self.backdrops.named(image, shown.style, objects) == shown.background
        return found

    def where(self, picture: Image.Image, subjects: tuple[str, ...], small: bool) -> Array:
        """Where subjects stand: bool [H, W]."""
        seen = self.seen(picture, small)
        masks = [seen.mask(0, subject) for subject in subjects]
        whole: Array = np.any(masks, axis=0)
        return whole

    def seen(self, picture: Image.Image, small: bool) -> Seen:
        """The subject judge's maps, on cells of 4 px; those of the last pictures are kept."""
        key = (id(picture), small)
        if key not in self._read:
            width, height = picture.size
            if max(width, height) > LARGEST or width % CELL or height % CELL:
                raise ControlError(
                    f"the embedded judges read sides up to {LARGEST} px, multiples of {CELL}, not {width} x {height} "
                    "px; leave before and after out of the set, or draw smaller pictures"
                )
            image = np.asarray(picture.convert("RGB"))[None]
            while len(self._read) >= 6:
                del self._read[next(iter(self._read))]
            seen = self.subjects(image, PAIR_SCALES if small else (1.0,), FINE)
            self._read[key] = picture, seen
        return self._read[key][1]


def check_known(shown: Shown) -> None:
    """Raise ControlError for what no judge knows."""
    asked = {
        "subject": (shown.subjects, SUBJECTS),
        "color": (filter(None, shown.colors), COLOR_NAMES),
        "style": (filter(None, [shown.style]), PAIRED.styles),
        "background": (filter(None, [shown.background]), NAMES),
    }
    for what, (names, known) in asked.items():
        for name in names:
            if name not in known:
                raise ControlError(f"the embedded judges know no {what} {name!r}; they know {', '.join(known)}")


def small(case: EditCase) -> bool:
    """Whether several things stand in the source or in the edit."""
    return any(len(one.subjects) > 1 for one in (case.before, case.after) if one is not None)


def edited(case: EditCase) -> tuple[str, ...]:
    """The subjects of the source that the edit is about; none for a style, a background and for what is added."""
    before, after = case.before, case.after
    assert before is not None
    assert after is not None
    if case.kind == "remove":
        return tuple(name for name in before.subjects if name not in after.subjects)
    if case.kind == "move":
        return before.subjects
    was, now = (list(one.colors) if case.kind == "change color" else list(one.subjects) for one in (before, after))
    if case.kind not in ("change color", "change object") or len(was) != len(now):
        return ()
    return tuple(name for name, a, b in zip(before.subjects, was, now, strict=True) if a != b)


def done(jury: Jury, case: EditCase, picture: Image.Image) -> tuple[bool, bool | None]:
    """Whether what the edit is to change is read as asked, and whether all else still is (None: there is nothing)."""
    assert case.after is not None
    right = jury.right(picture, case.after, small(case))
    what = CHANGED.get(case.kind, "subject")
    success = right.get(what, False)
    if case.kind == "remove":
        gone = edited(case)
        success = success and not any(one.subject in gone for one in jury.seen(picture, True).found(2)[0])
    rest = [value for name, value in right.items() if name != what]
    return success, all(rest) if rest else None


def _subjects(seen: Seen, shown: Shown, small: bool) -> bool:
    if not small:
        return seen.subjects()[0] == shown.subjects[0]
    things = seen.found(len(shown.subjects))[0]
    if shown.relation is None:
        return all_found(things, shown.subjects)
    return in_order(things, shown.subjects, shown.relation)


def _colors(seen: Seen, shown: Shown) -> bool:
    wanted = {name: color for name, color in zip(shown.subjects, shown.colors, strict=True) if color}
    return all(seen.color_of([name])[0] == color for name, color in wanted.items())
