"""The errors a user can meet: each message names what is wrong, where, and the way out."""


class ControlError(ValueError):
    """A control, picture, recipe or model cannot be used as asked."""


class ConflictError(ControlError):
    """Two controls, or two sessions, claim the same thing."""


class NoEffectWarning(UserWarning):
    """A control was asked for but did not act."""


class PlaceWarning(UserWarning):
    """A control's tokens stand elsewhere than usual, for want of room."""


class OverGuidanceWarning(UserWarning):
    """Guidance pushes the prediction further than pictures bear."""
