"""Where a bundle comes from: its ancestors, and what was changed from one to the next. Holds no text and no time."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Change(BaseModel):
    """One change to a guard.

    Attributes:
        kind: the method or option that made it: "partial_fit", "forget", "calibrate", "threshold", "rules", ...
        prompts: how many prompts it was made with, where prompts made it.
        name: what of several it concerns (a category), where there are several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(pattern=r"^[a-z_]{1,40}$")
    prompts: int | None = Field(default=None, ge=0)
    name: str | None = None

    def __str__(self) -> str:
        about = f" {self.name}" if self.name is not None else ""
        return f"{self.kind}{about}" + (f" ({self.prompts} prompts)" if self.prompts is not None else "")


class Ancestor(BaseModel):
    """A bundle that another was made from.

    Attributes:
        bundle_id: its name and hash.
        changes: what was changed since, in order, up to the next ancestor or the bundle itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_id: str
    changes: tuple[Change, ...] = ()
