"""The embedded world and models: procedural scenes with known truth, and small models trained on them."""

from __future__ import annotations

from pathlib import Path

MODELS = ("tiny-flux", "tiny-sd3")
"""Names of the models that come with the package."""

CACHE = Path.home() / ".cache" / "attnctrl"
"""Where artwork and training runs lie."""

_WEIGHTS = Path(__file__).parent / "weights"


def model_folder(name: str) -> Path:
    """The folder of an embedded model, for `from_pretrained`; ValueError for a name that is not shipped."""
    if name not in MODELS:
        raise ValueError(f"no embedded model is called {name!r}; known names: {', '.join(MODELS)}")
    return _WEIGHTS / name
