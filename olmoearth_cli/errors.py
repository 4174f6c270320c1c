"""The errors a user can meet: each says what failed, why, and what to do."""

from __future__ import annotations


class OlmoEarthError(Exception):
    """Something the user can fix. Shown as one message, without a traceback."""

    exit_code = 2


class InputError(OlmoEarthError):
    """A flag, a region, a settings file or labels that cannot be used as given."""


class ModelError(OlmoEarthError):
    """A model that is unknown, damaged, of another architecture, or not to be had offline."""


class CatalogError(OlmoEarthError):
    """A catalogue that is down, answers garbage, or holds nothing for the request."""


class GuardError(OlmoEarthError):
    """Imagery whose values contradict what the provider says about them (offset, units, level)."""


class OutputError(OlmoEarthError):
    """A result that cannot be written: no permission, disk full, other settings in the same folder."""


class RunError(OlmoEarthError):
    """The run itself failed although the request was sound."""

    exit_code = 1
