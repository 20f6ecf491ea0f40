"""Bad options as the library's own errors, not as pydantic's, which wrap them and quote the values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from mlpm_guard.errors import ConfigurationError, MlpmGuardError


@contextmanager
def checked(owner: object) -> Iterator[None]:
    """Raise what a validator raised, or a `ConfigurationError` that names the option.

    Raises:
        MlpmGuardError: an option has a bad value.
    """
    try:
        yield
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[0]
        raised = found.get("ctx", {}).get("error")
        where = ".".join(str(each) for each in found["loc"]) or "options"
        name = type(owner).__name__
        wanted = raised if isinstance(raised, MlpmGuardError) else ConfigurationError(f"{name}: {where}: {found['msg']}")
    else:
        return
    raise wanted
