"""Load a TOML file into one frozen object, or report all its problems at once.

A schema is a frozen attrs class whose fields have the types of ``tunnel_core.config.types``. ``load`` reads
the file and the environment, whose variables override the file; ``parse`` has no I/O. Unknown keys are
refused, because a misspelt limit that is silently ignored does not limit.
"""

from __future__ import annotations

import difflib
import enum
import os
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import GenericAlias, MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn

from tunnel_core.config import paths
from tunnel_core.config.effective import Given
from tunnel_core.config.environment import given_in, lay_over, table_of, unknown_in
from tunnel_core.config.toml_lines import key_lines
from tunnel_core.config.types import PARSERS, InvalidValueError, Parsers
from tunnel_core.text_files import NotPlainText, text_of

_MAX_FILE_BYTES = 1024 * 1024
_KEY = "{key}"
"""Placeholder in a fix for the key of the problem, which the parser of a value does not know."""


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a configuration, and its default data folder."""

    file: Path
    data_dir: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """The keys that the environment sets, each with the name of its variable."""

    def place_of(self, key: str) -> tuple[str, str]:
        """Return the source of a key, as the ``file`` and ``key`` of a ``Problem``."""
        variable = self.variables.get(key)
        return ("the environment", variable) if variable else (str(self.file), key)

    @property
    def folder(self) -> Path:
        """The folder to which relative file names refer."""
        return self.file.parent


class Schema(Protocol):
    """A configuration class.

    ``defaults`` returns values for keys that the file leaves out; they may depend on the file's content.
    ``parsers`` has the parsers of types that only this schema has.
    """

    parsers: ClassVar[Parsers]

    @classmethod
    def defaults(cls, raw: Mapping[str, Any], source: Source) -> Mapping[str, Any]: ...


T = TypeVar("T", bound=Schema)


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a configuration: its place, a message and a fix. ``key`` is empty for the whole file."""

    file: str
    key: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.file}: {self.key}" if self.key else self.file
        return f"{place}: {self.message}" + (f"; {self.fix}" if self.fix else "")


class ConfigError(Exception):
    """All problems of a configuration; ``str`` has one line for each problem."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


_CREATE_IT = "create it, or name another with --config"


def load(
    path: Path,
    schema: type[T],
    *,
    data_dir: Path | None = None,
    environ: Mapping[str, str] | None = None,
    required: bool = True,
    absent_fix: str = _CREATE_IT,
) -> T:
    """Read the file at ``path`` and the variables in ``environ``, and return them as a ``schema``.

    ``environ`` is ``os.environ`` by default, and its variables override the file. A file that is not
    ``required`` may be absent. ``absent_fix`` is the fix for an absent file that is required. Raises
    ``ConfigError``.
    """
    raw = _parse_toml(path, _read_text(path, absent_fix if required else None))
    return read(raw, path, schema, data_dir=data_dir, environ=environ)


def load_given(
    path: Path,
    schema: type[T],
    *,
    environ: Mapping[str, str] | None = None,
    required: bool = True,
    absent_fix: str = _CREATE_IT,
) -> tuple[T, Given]:
    """Like ``load``, but also return the sources (file, lines, variables) for ``effective.settings_of``."""
    text = _read_text(path, absent_fix if required else None)
    raw = _parse_toml(path, text)
    environ = os.environ if environ is None else environ
    config = read(raw, path, schema, environ=environ)
    variables = {variable.key: variable.name for variable in given_in(environ, schema)}
    return config, Given(path.absolute(), raw, key_lines(text), variables, {})


def read(
    raw: Mapping[str, Any],
    path: Path,
    schema: type[T],
    *,
    data_dir: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> T:
    """Like ``load``, for a file whose content ``raw`` is read already. Raises ``ConfigError``."""
    environ = os.environ if environ is None else environ
    if unknown := unknown_in(environ, schema):
        fixes = {
            variable.name: f"did you mean {variable.close}?" if variable.close else "unset it"
            for variable in unknown
        }
        raise ConfigError(
            tuple(Problem("the environment", name, "unknown variable", fix) for name, fix in fixes.items())
        )
    given = given_in(environ, schema)
    variables = {variable.key: variable.name for variable in given}
    source = Source(path.absolute(), data_dir or paths.data_folder(), variables)
    return parse(lay_over(raw, given), schema, source)


def _read_text(path: Path, absent_fix: str | None) -> str:
    """Return the file's text; an absent file is empty if ``absent_fix`` is None. Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        if absent_fix is None:
            return ""
        raise _whole_file(path, "there is no such file", absent_fix) from None
    except OSError as error:
        raise _whole_file(path, f"cannot be read: {error.strerror}", paths.rights_hint(error)) from None
    if len(data) > _MAX_FILE_BYTES:
        raise _whole_file(path, f"is larger than {_MAX_FILE_BYTES} bytes", "is it the right file?")
    try:
        return text_of(data)
    except NotPlainText as error:
        raise _whole_file(path, str(error), "") from None


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _whole_file(path, f"is not valid TOML: {error}", "") from None


def _whole_file(path: Path, message: str, fix: str) -> ConfigError:
    return ConfigError((Problem(str(path), "", message, fix),))


def parse(raw: Mapping[str, Any], schema: type[T], source: Source) -> T:
    """Return the content of a TOML file as a ``schema``. No I/O. Raises ``ConfigError`` with all problems."""
    merged = _with_defaults(raw, schema.defaults(raw, source))
    try:
        return _converter(source.folder, {**PARSERS, **schema.parsers}).structure(merged, schema)
    except Exception as error:
        problems = tuple(_problems(error, "", schema))
        raise ConfigError(tuple(Problem(*source.place_of(key), *rest) for key, *rest in problems)) from None


def _with_defaults(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **raw}
    for key, default in defaults.items():
        given = raw.get(key)
        if isinstance(default, Mapping) and isinstance(given, Mapping):
            merged[key] = _with_defaults(given, default)
    return merged


def _converter(folder: Path, parsers: Parsers) -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook(Path, _hook(lambda value: _path(value, folder)))
    converter.register_structure_hook_func(_is(Path | None), _hook(lambda value: _maybe_path(value, folder)))
    converter.register_structure_hook_factory(_is_enum, _word_hook)
    converter.register_structure_hook_factory(attrs.has, lambda cl: _table_hook(cl, converter))
    converter.register_structure_hook_factory(_is_list, lambda t: _list_hook(t, converter))
    converter.register_structure_hook_factory(_is_mapping, lambda t: _mapping_hook(t, converter))
    for wanted, parser in parsers.items():  # last, because cattrs tries the newest hook first
        if isinstance(wanted, type):
            converter.register_structure_hook(wanted, _hook(parser))
        else:
            converter.register_structure_hook_func(_is(wanted), _hook(parser))
    return converter


def _is(wanted: Any) -> Callable[[Any], bool]:
    return lambda candidate: bool(candidate == wanted)


def _hook(parser: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda value, _: parser(value)


def _is_enum(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, enum.Enum)


def _is_list(candidate: Any) -> bool:
    return typing.get_origin(candidate) is tuple


def _is_mapping(candidate: Any) -> bool:
    return typing.get_origin(candidate) is Mapping


def _path(value: object, folder: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidValueError("is not a file name", "write it in quotes")
    return folder / value


def _maybe_path(value: object, folder: Path) -> Path | None:
    return None if value == "" else _path(value, folder)


def _word_hook(words: type[enum.Enum]) -> Callable[[Any, Any], Any]:
    known = {member.value: member for member in words}

    def structure(value: Any, _: Any) -> enum.Enum:
        if not isinstance(value, str) or value not in known:
            message = f"{value!r:.80} is not one of {', '.join(known)}"
            close = difflib.get_close_matches(str(value), known, n=1)
            raise InvalidValueError(
                message, f"did you mean {close[0]}?" if close else "write one of them in quotes"
            )
        return known[value]

    return structure


def _table_hook(cl: type[Any], converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    structure = make_dict_structure_fn(cl, converter)

    def structure_table(value: Any, _: Any) -> Any:
        if isinstance(value, list):
            raise InvalidValueError("is a list of tables, not one table", f"write its head as [{_KEY}]")
        if not isinstance(value, Mapping):
            raise InvalidValueError("is not a table", "write it as a [section] with its keys below")
        return structure(value, cl)

    return structure_table


def _list_hook(wanted: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    items: Any = GenericAlias(list, typing.get_args(wanted)[:1])

    is_of_tables = attrs.has(typing.get_args(wanted)[0])

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if is_of_tables and isinstance(value, Mapping):
            raise InvalidValueError("is one table, not a list of tables", f"write its head as [[{_KEY}]]")
        if not isinstance(value, list | tuple):
            raise InvalidValueError("is not a list", "put it in brackets: [ ... ]")
        return tuple(converter.structure(value, items))

    return structure


def _mapping_hook(wanted: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    table: Any = GenericAlias(dict, typing.get_args(wanted))

    def structure(value: Any, _: Any) -> Mapping[Any, Any]:
        if not isinstance(value, Mapping):
            raise InvalidValueError("is not a table", "write it as a [section] with its keys below")
        return MappingProxyType(converter.structure(value, table))

    return structure


def _problems(error: Exception, key: str, schema: type[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield each problem in a tree of validation errors as (key, message, fix)."""
    match error:
        case cattrs.ClassValidationError():
            named, rest = error.group_exceptions()
            for inner, field in named:
                yield from _problems(inner, f"{key}.{field.name}".lstrip("."), schema)
            for inner in rest:
                yield from _problems(inner, key, schema)
        case cattrs.IterableValidationError():
            items, _ = error.group_exceptions()
            for inner, item in items:
                yield from _problems(inner, _item_key(key, item.index), schema)
        case ExceptionGroup():
            for inner in error.exceptions:
                yield from _problems(inner, key, schema)
        case _:
            yield from _single_problem(error, key, schema)


def _item_key(key: str, index: int | str) -> str:
    # From 1, as people count the [[tables]] of a file.
    return f"{key}#{index + 1}" if isinstance(index, int) else f"{key}.{index}"


def _single_problem(error: Exception, key: str, schema: type[Any]) -> Iterator[tuple[str, str, str]]:
    match error:
        case cattrs.ForbiddenExtraKeysError():
            known = [field.name for field in attrs.fields(error.cl)]
            for extra in sorted(error.extra_fields):
                fix = _belongs_elsewhere(extra, key, schema) or _did_you_mean(extra, known)
                yield f"{key}.{extra}".lstrip("."), "unknown key", fix
        case InvalidValueError():
            yield f"{key}.{error.key}".strip("."), error.message, error.fix.replace(_KEY, key)
        case KeyError():
            yield key, "is missing", "add it"
        case _:
            raise error


def _belongs_elsewhere(word: str, table: str, schema: type[Any]) -> str:
    """Return the fix for a key that belongs to another table; empty if no table has it, or several do.

    In TOML every key below a table's head belongs to that table, also a key that was meant for the whole
    file.
    """
    if table and word in (field.name for field in attrs.fields(schema)):
        hint = typing.get_type_hints(schema)[word]
        if table_of(hint) is not None:
            return f"it is a table of its own: write its head as [{word}]"
        if _is_list(hint) and attrs.has(typing.get_args(hint)[0]):
            return f"it is a list of tables: write the head of each as [[{word}]]"
        return "it is a key of the whole file: write it above the first [section]"
    places = _tables_with(word, schema)
    return f"it is a key of [{places[0]}]: write it below that head" if len(places) == 1 else ""


def _tables_with(word: str, schema: type[Any], above: str = "") -> list[str]:
    """Return the tables that have the key ``word``, without lists of tables."""
    places = []
    for name, hint in typing.get_type_hints(schema).items():
        inner = table_of(hint)
        if inner is not None:
            path = f"{above}.{name}".lstrip(".")
            places += [path] if word in (field.name for field in attrs.fields(inner)) else []
            places += _tables_with(word, inner, path)
    return places


def _did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
