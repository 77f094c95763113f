"""Options of a dataset, each declared once.

They are the fields of a model. A field's name, type, range, default and docstring make a flag of
`python -m data_pipeline.build`, a key of the `dataset:` section of a training configuration, and an entry of
`options` in dataset.json. Users give all options of a kind side by side; those of new puzzles are kept together in a
model of their own, which is null with a source.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, cast, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
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


class Option(NamedTuple):
    """An option as users give it."""

    field: FieldInfo
    scope: Literal["any", "source", "new"] = "any"
    """Whether it is of puzzles of a source only, or of new puzzles only."""


class Options(Strict):
    """The options of a kind of puzzles: what decides a dataset's content beside its sources and seed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    @classmethod
    def by_name(cls) -> dict[str, Option]:
        """Return all options side by side, those of new puzzles among them."""
        found: dict[str, Option] = {}
        for name, field in cls.model_fields.items():
            if (new := _model_of_new_puzzles(field)) is not None:
                found |= {name: option._replace(scope="new") for name, option in new.by_name().items()}
            elif field.annotation is not type(None):  # always null, and there for dataset.json alone
                found[name] = Option(field, "source" if OF_SOURCE in field.metadata else "any")
        return found

    @classmethod
    def from_given(cls, given: Mapping[str, object], source: str, *, has_source: bool) -> Self:
        """Return the options of which these were given; `source` is what messages call the sources.

        Raise ValidationError with every problem, at the option's name.
        """
        known = cls.by_name()
        values: dict[str, dict[str, object]] = {"any": {}, "source": {}, "new": {}}
        problems: list[InitErrorDetails] = []
        for name, value in given.items():
            if name not in known:
                why = f"is no option of this kind of puzzles; leave it out, or use one of {', '.join(known)}"
                problems.append(_problem(name, value, why))
                continue
            field, scope = known[name]
            if scope == ("new" if has_source else "source") and value is not None:
                whose, what = ("new puzzles", "leave out") if has_source else ("puzzles of a source", "add")
                why = f"only for {whose}; leave it out or {what} {source}"
                problems.append(_problem(name, value, why))
                continue
            try:
                values[scope][name] = _adapter(field).validate_python(value)
            except ValidationError as error:
                problems += [
                    InitErrorDetails(
                        type=e["type"], loc=(name, *e["loc"]), input=e["input"], ctx=e.get("ctx", {})
                    )
                    for e in error.errors()
                ]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        new = {
            name: None if has_source else model.model_validate(values["new"])
            for name, field in cls.model_fields.items()
            if (model := _model_of_new_puzzles(field)) is not None
        }
        return cls.model_validate(values["any"] | values["source"] | new)

    def given(self) -> dict[str, object]:
        """Return the options side by side, as `from_given` takes them."""
        values = side_by_side(self.model_dump())
        return {name: values[name] for name in self.by_name() if name in values}


def side_by_side(options: Mapping[str, object]) -> dict[str, object]:
    """Return options as dataset.json has them with those of new puzzles, if any, beside the others."""
    values: dict[str, object] = {}
    for name, value in options.items():
        values |= cast("dict[str, object]", value) if isinstance(value, dict) else {name: value}
    return values


def _model_of_new_puzzles(field: FieldInfo) -> type[Options] | None:
    """Return the model of a field that holds the options of new puzzles."""
    models = [t for t in get_args(field.annotation) if isinstance(t, type) and issubclass(t, Options)]
    return models[0] if models else None


def _adapter(field: FieldInfo) -> TypeAdapter[object]:
    """Return what checks one field alone."""
    return TypeAdapter(cast("Any", Annotated)[field.annotation, field])


def _problem(name: str, value: object, why: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("option", "{why}", {"why": why}), loc=(name,), input=value
    )  # pyright: ignore[reportArgumentType]
