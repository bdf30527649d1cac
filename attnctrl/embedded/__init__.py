"""The embedded world and models: procedural scenes with known truth, and small models trained on them."""

from __future__ import annotations

import hashlib
from pathlib import Path

MODELS = ("tiny-sd3", "tiny-flux")
"""Names of the models that come with the package; the app opens on the first."""

CACHE = Path.home() / ".cache" / "attnctrl"
"""Where artwork and training runs lie."""

_WEIGHTS = Path(__file__).parent / "weights"


def model_folder(name: str) -> Path:
    """The folder of an embedded model, for `from_pretrained`; ValueError for a name that is not shipped."""
    if name not in MODELS:
        raise ValueError(f"no embedded model is called {name!r}; known names: {', '.join(MODELS)}")
    return _WEIGHTS / name


def digest(folder: Path) -> str:
    """What tells one set of weights from another: 12 hex digits of the SHA-256 of a pipeline folder's tensors."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]
