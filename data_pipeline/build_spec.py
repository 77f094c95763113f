"""What to build, as a command line or a `dataset:` section of a configuration says it."""

from typing import Any, cast

from pydantic import (
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from data_pipeline.base.models import Strict
from data_pipeline.base.paths import PathText
from data_pipeline.kind import Kind
from data_pipeline.kinds import KIND_OF_PRESET, KINDS
from data_pipeline.options import Options
from data_pipeline.schema import DatasetInfo


class BuildSpec(Strict):
    """A dataset to build. Its options are given and shown side by side with the other fields.

    The context of the validation is what comes before a name in messages.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    preset: str
    """What to start from; see data_pipeline.build."""
    source: tuple[PathText, ...] = ()
    """Folders and files to add, as PATH[:train|:evaluation]."""
    seed: int = Field(default=42, ge=0)
    """Seed of all draws."""
    options: SerializeAsAny[Options] = Options()
    """Those of the preset's kind."""

    @property
    def kind(self) -> Kind:
        return KIND_OF_PRESET[self.preset]

    def describes(self, info: DatasetInfo) -> bool:
        """Return whether a dataset is what this builds, as far as that is known without reading the sources."""
        same = (info.kind, info.options, info.seed) == (self.kind.name, self.options.model_dump(), self.seed)
        own = [] if self.preset == self.kind.name else [self.preset]  # what the preset itself starts from
        names = [source.name for source in info.sources]
        others = [name for name in names[:1] if name in self.kind.presets and name != self.kind.name]
        return same and others == own and (len(names) > len(own)) == bool(self.source)

    @classmethod
    def all_keys(cls) -> set[str]:
        """Return every key that one of the kinds has."""
        own = set(cls.model_fields) - {"options"}
        return own.union(*(kind.options.by_name() for kind in KINDS))

    @field_validator("preset")
    @classmethod
    def _preset_is_known(cls, preset: str) -> str:
        if preset not in KIND_OF_PRESET:
            *others, last = map(repr, KIND_OF_PRESET)
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
        return preset

    @field_validator("source", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, source: object) -> object:
        return [source] if isinstance(source, str) else source

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, data: object, info: ValidationInfo) -> object:
        if not isinstance(data, dict) or "options" in data:
            return cast("object", data)
        given = cast("dict[str, Any]", data)
        own = {name: value for name, value in given.items() if name in cls.model_fields}
        kind = KIND_OF_PRESET.get(str(given.get("preset")))
        if kind is None:
            return own  # in which the preset is refused
        options = {name: value for name, value in given.items() if name not in own}
        source = f"{'dataset.' if info.context is None else info.context}source"
        own["options"] = kind.options.from_given(options, source, has_source=bool(own.get("source")))
        return own

    @model_serializer
    def _side_by_side(self) -> dict[str, object]:
        return {"preset": self.preset, "source": list(self.source), "seed": self.seed, **self.options.given()}
