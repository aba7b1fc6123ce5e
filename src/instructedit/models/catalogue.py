"""Base models with a short name, and where they are once they have been fetched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from instructedit.assets import read_yaml
from instructedit.storage.cache import cache_folder

#: In a fetched model's folder: where it comes from. Written last, so a folder without it is incomplete.
ORIGIN = "origin.json"


class KnownModel(BaseModel):
    """A model of ``assets/models.yaml``, which explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    license: str
    terms: str
    parameters: int
    hub: str
    packages: tuple[str, ...] = Field(min_length=1)
    parts: tuple[str, ...] = Field(min_length=1)
    sha256: str
    bytes: int

    @property
    def folder(self) -> Path:
        """The folder of the fetched checkpoint."""
        return cache_folder() / "models" / self.name

    @property
    def is_fetched(self) -> bool:
        """Whether the model has been fetched completely."""
        return (self.folder / ORIGIN).is_file()


@cache
def known_models() -> Mapping[str, KnownModel]:
    """Return the models that can be fetched, by name."""
    return {name: KnownModel(name=name, **fields) for name, fields in read_yaml("models.yaml").items()}
