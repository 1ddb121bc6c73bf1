"""What every section of the job file is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A section: a key that it does not know is an error, and nothing changes it once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
