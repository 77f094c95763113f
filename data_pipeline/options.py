"""Options of a dataset, each declared once.

They are the fields of a model. A field's name, type, range, default and docstring make a flag of
`python -m data_pipeline.build`, a key of the `dataset:` section of a training configuration, and an entry of
`options` in dataset.json. Users give all options of a kind side by side; those of new puzzles are kept together in a
model of their own, which is null with a source.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, Self, cast, get_args

from pydantic import ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from data_pipeline.base.models import Strict

LeakPolicy = Annotated[
    Literal["refuse", "drop", "keep"],
    Field(
        description="Held-out pairs that also stand in the training data: refuse to build (but for those that a "
        "published preset has), drop them from training, or keep them."
    ),
]


class _OfSource:
    """Marks an option that chooses among the puzzles of a source."""


OF_SOURCE = _OfSource()
_GENERATOR = "generator"


class Option(NamedTuple):
    """An option as users give it."""

    field: FieldInfo
    scope: Literal["any", "source", "new"]
    """Whether it is of puzzles of a source only, or of new puzzles only."""


class Options(Strict):
    """The options of a kind of puzzles: what decides a dataset's content beside its sources and seed.

    The model of a field `generator`, where there is one, holds those of new puzzles.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    @classmethod
    def by_name(cls) -> dict[str, Option]:
        """Return all options side by side, those of new puzzles among them."""
        fields = dict(cls.model_fields)
        generator = fields.pop(_GENERATOR, None)
        found = {
            name: Option(field, "source" if OF_SOURCE in field.metadata else "any")
            for name, field in fields.items()
            if field.annotation is not type(None)  # always null, and there for dataset.json alone
        }
        if generator is not None:
            new = cast("type[Options]", get_args(generator.annotation)[0]).by_name()
            found |= {name: Option(field, "new") for name, (field, _) in new.items()}
        return found

    @classmethod
    def from_given(cls, given: Mapping[str, object], source: str, *, has_source: bool) -> Self:
        """Return the options of which these were given; `source` is what messages call the sources.

        Raise ValidationError with every problem, at the option's name.
        """
        known = cls.by_name()
        whose, remedy, misplaced = (
            ("new puzzles", "leave out", "new") if has_source else ("puzzles of a source", "add", "source")
        )
        values: dict[str, object] = {}
        new: dict[str, object] = {}
        problems: list[InitErrorDetails] = []
        for name, value in given.items():
            if name not in known:
                why = f"is no option of this kind of puzzles; leave it out, or use one of {', '.join(known)}"
            elif known[name].scope == misplaced and value is not None:
                why = f"only for {whose}; leave it out or {remedy} {source}"
            else:
                (new if known[name].scope == "new" else values)[name] = value
                continue
            kind_of_error = PydanticCustomError("option", "{why}", {"why": why})
            problems.append(InitErrorDetails(type=kind_of_error, loc=(name,), input=value))
        if _GENERATOR in cls.model_fields:
            values[_GENERATOR] = None if has_source else new
        try:
            options = cls.model_validate(values)
        except ValidationError as error:
            for e in error.errors():
                loc = tuple(name for name in e["loc"] if name != _GENERATOR)
                problems.append(
                    InitErrorDetails(type=e["type"], loc=loc, input=e["input"], ctx=e.get("ctx", {}))
                )
        else:
            if not problems:
                return options
        raise ValidationError.from_exception_data(cls.__name__, problems)

    def given(self) -> dict[str, object]:
        """Return the options side by side, as `from_given` takes them."""
        values = side_by_side(self.model_dump())
        return {name: values[name] for name in self.by_name() if name in values}


def side_by_side(options: Mapping[str, object]) -> dict[str, object]:
    """Return options as dataset.json has them with those of new puzzles, if any, beside the others."""
    new = cast("Mapping[str, object]", options.get(_GENERATOR) or {})
    return {name: value for name, value in options.items() if name != _GENERATOR} | dict(new)
