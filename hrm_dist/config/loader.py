"""Configuration text: a YAML file and key=value overrides become one tree.

Problems become lines.

Keys are handled flat and dotted (`arch.H_cycles`), so that a file, an override and an alias meet in one form.
Scalars stay text until a typed field converts them: `lr: 7e-5` is a number, `run_name: 007` a name.

A file is YAML. An override is not: of a text key, all behind `=` is the value, exactly as it was typed (`run_name=`
without any is null, where a key can be null); of any other it is a word, or null, and YAML only where it begins with a
bracket or a quote, like `data_paths=[data/arc1]`.
"""
# pyright: strict

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, cast

import yaml
from pydantic import ValidationError

from data_pipeline.base.models import problems, shown
from data_pipeline.base.paths import recordable
from hrm_dist.config.hints import unknown_key

logger = logging.getLogger(__name__)

# A configuration has some hundred values. A few lines of nested aliases can stand for billions.
_MOST_BYTES, _MOST_VALUES = 2**18, 10_000

Value: TypeAlias = "str | bool | list[Value] | dict[str, Value] | None"
Entries: TypeAlias = dict[str, Value]
Alias: TypeAlias = Callable[[Value], Entries] | None
"""A foreign key's value to our keys and values, or a ValueError that says why not; None: ignored."""


class Setting(NamedTuple):
    """One value that the user gave, and how messages about it begin."""

    value: Value
    source: str  # the file, or the override as typed
    label: str  # the same with the key as the user spelled it


class TextKey(NamedTuple):
    """A key whose values are text, whatever is in them."""

    empty: Value = ""
    """What nothing at all stands for: null, where the key can be null."""
    is_list: bool = False
    """Whether values in square brackets are lists."""


class Settings:
    """What the user gave, under our names, and every problem met on the way."""

    def __init__(
        self,
        aliases: Mapping[str, Alias],
        valid_keys: Collection[str],
        text_keys: Mapping[str, TextKey] = MappingProxyType({}),
        hints: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.errors: list[str] = []
        self.file_unusable = False
        self._aliases = aliases
        self._valid_keys = valid_keys
        self._text_keys = text_keys
        self._hints = hints
        self._settings: dict[str, Setting] = {}

    def read_file(self, path: Path) -> None:
        """Take a YAML file's entries; a key that is given twice is an error."""
        entries = read_entries(path, self.errors)
        self.file_unusable = entries is None
        for key, value in _leaves(entries or {}):
            self._put(key, Setting(value, str(path), f"{path}: {key}"), replace=False)

    def read_override(self, override: str, origin: str = "command line") -> None:
        """Take one `key=value`, which replaces what was there; Hydra's leading `+` is allowed."""
        source = f"{origin}: {override}"
        name, equals, text = override.partition("=")
        name = name.strip().lstrip("+")
        if not name or not equals:
            self.errors.append(f"{source}: should be written key=value")
            return
        try:
            value = _value(recordable(text), self._text_keys.get(name))
        except ValueError as error:
            self.errors.append(f"{source}: {error}")
            return
        except (yaml.YAMLError, RecursionError) as error:
            self.errors.append(f"{source}: {_yaml_problem(error)}; look at its brackets and quotes")
            return
        self.put(name, value, source)

    def put(self, name: str, value: Value, source: str) -> None:
        """Take a value, or a section of them, that replaces what was there."""
        for key, leaf in _leaves({name: value}):
            self._put(key, Setting(leaf, source, source), replace=True)

    def tree(self) -> Entries:
        """Return the settings as nested sections."""
        tree: Entries = {}
        for key, setting in self._settings.items():
            section, _, name = key.rpartition(".")
            target = cast("Entries", tree.setdefault(section, {})) if section else tree
            target[name] = setting.value
        return tree

    def add_invalid(self, invalid: ValidationError, everything: str) -> None:
        """Add a line for each thing the typed fields refused; `everything` names all the input."""
        for kind, key, why in problems(invalid):
            if kind == "value_error":  # a check across fields: its lines name the keys
                self.errors.append(f"{everything}: {why}")
            elif kind == "missing":
                name = key.rpartition(".")[2]
                self.errors.append(f"{everything}: {key}: {why}; add `{name}: ...` or give {key}=...")
            else:
                setting = self._settings.get(key)
                self.errors.append(f"{setting.label if setting else f'{everything}: {key}'}: {why}")

    def _put(self, key: str, setting: Setting, *, replace: bool) -> None:
        entries: Entries = {key: setting.value}
        if key in self._aliases:
            alias = self._aliases[key]
            if alias is None:
                logger.warning("%s: '%s' has no meaning here and is ignored", setting.source, key)
                return
            try:
                entries = alias(setting.value)
            except ValueError as error:
                self.errors.append(f"{setting.label}: {error}")
                return
        for name, value in entries.items():
            if name not in self._valid_keys:
                self.errors.append(
                    f"{setting.source}: {unknown_key(name, self._valid_keys, self._aliases, self._hints)}"
                )
                continue
            if name in self._settings and not replace:
                self.errors.append(f"{setting.label}: '{name}' is given twice; keep one of them")
                continue
            # `dataset=null` after a file's `dataset: {...}`, and the other way round.
            for other in [o for o in self._settings if f"{o}.".startswith(f"{name}.")]:
                del self._settings[other]
            self._settings.pop(name.rpartition(".")[0], None)
            self._settings[name] = setting._replace(value=value)


def read_entries(path: Path, errors: list[str]) -> Entries | None:
    """Return a YAML file's entries, scalars as text; None where it cannot be used. Add what is wrong to `errors`."""
    duplicates: list[str] = []
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            errors.append(f"{path}: is larger than {_MOST_BYTES >> 10} KiB; give the path of a YAML file")
            return None
        entries = _parsed(content.decode(), duplicates)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        errors.append(f"{path}: cannot be read ({reason}); give the path of a YAML file")
        return None
    except (yaml.YAMLError, RecursionError) as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        errors.append(f"{path}{f':{mark.line + 1}' if mark else ''}: {_yaml_problem(error)}")
        return None
    if not isinstance(entries, dict | None):
        errors.append(f"{path}: should hold `key: value` lines (got {shown(entries)})")
        return None
    errors.extend(f"{path}:{duplicate}" for duplicate in duplicates)
    return entries or {}


def overrides_of(entries: Entries) -> list[str]:
    """Return a file's entries as the `key=value` that say the same."""
    return [f"{key}={_override_text(value)}" for key, value in _leaves(entries)]


def _override_text(value: Value) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) else json.dumps(value)


def _value(text: str, key: TextKey | None) -> Value:
    """Return what an override says of a key."""
    if key is not None and not (key.is_list and text.startswith("[")):
        return text or key.empty
    text = text.strip()
    if text.startswith(("[", "{", "'", '"')):
        return _parsed(text, [])
    return None if text in ("", "~") or text.lower() == "null" else text


def _parsed(text: str, duplicates: list[str]) -> Value:
    node = cast("yaml.Node | None", yaml.compose(text, yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
    if node is None:
        return None
    if _num_values(node, {}) > _MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"it expands to more than {_MOST_VALUES:,} values")
    return _plain(node, "", duplicates)


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the values of a node with every alias written out, which aliases of aliases make far more than there are.

    known: of nodes counted before, by id.
    """
    if id(node) not in known:
        pairs = cast(
            "list[tuple[yaml.Node, yaml.Node]]", node.value if isinstance(node, yaml.MappingNode) else []
        )
        items = cast("list[yaml.Node]", node.value if isinstance(node, yaml.SequenceNode) else [])
        parts = [*items, *(part for pair in pairs for part in pair)]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]


def _plain(node: yaml.Node, prefix: str, duplicates: list[str]) -> Value:
    """Return YAML's structure with scalars as text, except a plain null."""
    if isinstance(node, yaml.MappingNode):
        entries: Entries = {}
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            key = str(cast("object", key_node.value))
            if key in entries:
                line = key_node.start_mark.line + 1
                duplicates.append(f"{line}: '{prefix}{key}' is given twice; keep one of them")
            entries[key] = _plain(value_node, f"{prefix}{key}.", duplicates)
        return entries
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, prefix, duplicates) for item in cast("list[yaml.Node]", node.value)]
    return None if node.tag == "tag:yaml.org,2002:null" else str(cast("object", node.value))


def _leaves(entries: Entries, prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in entries.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _yaml_problem(error: Exception) -> str:
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
    return f"not valid YAML ({problem or 'it cannot be parsed'})"
