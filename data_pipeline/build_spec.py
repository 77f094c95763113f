"""What to build, as a command line or a `dataset:` section of a configuration says it."""

from pathlib import Path
from typing import Any, cast

from pydantic import (
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from data_pipeline import subsets
from data_pipeline.base.errors import InputError
from data_pipeline.base.models import Strict
from data_pipeline.base.parallel import Part
from data_pipeline.base.paths import PathText
from data_pipeline.kind import Kind
from data_pipeline.kinds import KIND_OF_PRESET, KINDS
from data_pipeline.options import Options
from data_pipeline.schema import DatasetInfo
from data_pipeline.shards.plan import Request

_WHOLE = Part()


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
    subset: str | None = None
    """Puzzles of a benchmark by name, as NAME[@HASH]: its preset, source, options and, where it matters, seed."""

    @property
    def kind(self) -> Kind:
        return KIND_OF_PRESET[self.preset]

    def request(self, out: Path, *, workers: int, quiet: bool, part: Part = _WHOLE) -> Request:
        """Return the request to build it in a folder."""
        return Request(
            self.preset, list(self.source), out, self.options, self.seed, workers, quiet, part, self.subset
        )

    def describes(self, info: DatasetInfo) -> bool:
        """Return whether a dataset is what this builds, as far as that is known without reading the sources."""
        same = (info.kind, info.options, info.seed) == (self.kind.name, self.options.model_dump(), self.seed)
        if self.subset is not None and info.subsets is not None:
            try:
                subsets.check(info.subsets, self.subset)
            except InputError:
                return False
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
        prefix = "dataset." if info.context is None else str(info.context)
        if given.get("subset") is not None:
            given = _with_subset(given, prefix)
        own = {name: value for name, value in given.items() if name in cls.model_fields}
        kind = KIND_OF_PRESET.get(str(given.get("preset")))
        if kind is None:
            return own  # in which the preset is refused
        options = {name: value for name, value in given.items() if name not in own}
        own["options"] = kind.options.from_given(
            options, f"{prefix}source", has_source=bool(own.get("source"))
        )
        return own

    @model_serializer
    def _side_by_side(self) -> dict[str, object]:
        named = {} if self.subset is None else {"subset": self.subset}
        return {
            **named, "preset": self.preset, "source": list(self.source), "seed": self.seed, **self.options.given(),
        }  # fmt: skip


def _with_subset(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return what is given together with what the subset says. Raise ValidationError where they contradict."""
    try:
        subset, _ = asked = subsets.asked_for(str(given["subset"]))
    except ValueError as error:
        raise _refusal(given, subset=str(error)) from None
    said: dict[str, Any] = {"preset": subset.preset, "source": list(subset.source), **subset.options}
    if subset.seed is not None:
        said["seed"] = subset.seed
    options = KIND_OF_PRESET[subset.preset].options.by_name()
    fixed = {
        name: option.field.default for name, option in options.items() if name not in subsets.FREE
    } | said
    if asked.is_checked:
        del fixed["leaks"]
        if subset.source:  # the same puzzles from elsewhere are as good
            del fixed["source"]
    given = {name: value for name, value in given.items() if name != "source" or value}
    wrong = {
        name: f"is {_as_text(fixed[name]) or 'empty'} in subset {subset.name}; leave it out or leave out {prefix}subset"
        for name, value in given.items()
        if name in fixed and _as_text(value) != _as_text(fixed[name])
    }
    if "preset" in wrong:
        raise _refusal(given, subset=f"{subset.name} is of preset {subset.preset}, not of {given['preset']}")
    if "source" in wrong and subset.source:
        wrong["source"] += (
            f"; to take it from elsewhere, add both hashes to check it by, {subset.name}@TRAIN+TEST"
        )
    if wrong:
        raise _refusal(given, **wrong)
    return said | given


def _as_text(value: object) -> str:
    """Return a value as it would be in a configuration, where scalars are text until a field converts them."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, cast("list[object]", value)))
    return "null" if value is None else str(value)


def _refusal(given: dict[str, Any], **why: str) -> ValidationError:
    problems = [
        InitErrorDetails(
            type=PydanticCustomError("subset", "{why}", {"why": text}), loc=(name,), input=given[name]
        )
        for name, text in why.items()
    ]
    return ValidationError.from_exception_data("BuildSpec", problems)
