"""Reading of text, JSON and YAML files; every problem of a file is a :class:`DataError` that states where."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from instructedit.errors import DataError

#: Maximum number of values of a YAML file after its aliases are expanded; a few lines of aliases can mean billions.
MAX_YAML_VALUES = 1_000_000
#: Maximum nesting of brackets in a YAML file; the parser's time grows with the square of the depth.
MAX_YAML_NESTING = 100
#: Maximum length of a value in an error message, in characters.
MAX_REPR_LENGTH = 200


def short_repr(value: object) -> str:
    """Return the ``repr`` of a value for a message, truncated to :data:`MAX_REPR_LENGTH` characters."""
    text = repr(value)
    return text if len(text) <= MAX_REPR_LENGTH else f"{text[:MAX_REPR_LENGTH]}… ({len(text):,} characters)"


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None
    except ValueError as error:  # a NUL character in the path
        raise DataError(f"is not a valid file name: {error}", file=repr(str(path))) from None


def read_text(path: str | Path) -> str:
    """Return the content of a UTF-8 text file, without a byte order mark.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start})", file=path) from None


def parse_json(text: str, *, file: object = None, place: str = "", lone_surrogates: bool = False) -> Any:
    """Parse standard JSON, which has no NaN, no infinity and no lone surrogates.

    Args:
        text: the JSON.
        file: the file that contains the text, for messages.
        place: the position in the file, for messages (``line 3``); empty if the text is the full file.
        lone_surrogates: accept lone surrogates, for texts that are stored unchanged.

    Raises:
        DataError: the text is not JSON, is nested too deeply, or contains a number or character that cannot be
            represented.
    """
    prefix = f"{place} " if place else ""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        # The parser accepts lone surrogates ("\\ud800"), which cannot be printed or written, and numbers beyond the
        # range of a float (1e999), which it turns into infinity. Encoding the value again finds both.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode(
            errors="surrogatepass" if lone_surrogates else "strict"
        )
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if place else f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{prefix}is not valid JSON at {where}: {error.msg}. The file may be truncated; copy it again.", file=file
        ) from None
    except RecursionError:
        raise DataError(f"{prefix}is not usable JSON: it is nested too deeply", file=file) from None
    except UnicodeEncodeError:
        raise DataError(
            f"{prefix}is not usable JSON: a string contains a lone surrogate (\\ud800 to \\udfff)", file=file
        ) from None
    except ValueError as error:  # a number of thousands of digits, NaN or infinity
        raise DataError(f"{prefix}is not usable JSON: {str(error).split(';')[0]}", file=file) from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def read_json_file(path: str | Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        DataError: the file cannot be read, is not UTF-8 or is not JSON.
    """
    return parse_json(read_text(path), file=path)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with a nesting limit, without repeated keys, and with line numbers for invalid values."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - PyYAML's
        """Raise an error if brackets are nested too deeply."""
        if self.flow_level >= MAX_YAML_NESTING:
            raise yaml.scanner.ScannerError(None, None, "brackets are nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Construct a value; an error that its type raises gets the line number."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, AttributeError, KeyError, TypeError) as error:
            if isinstance(error, yaml.YAMLError):
                raise
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; a key that is there twice would silently lose its first value."""
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    problem = f"the key {short_repr(key.value)} is there twice; keep one of the two"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def read_yaml_file(path: str | Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        DataError: the file cannot be read, is not UTF-8 or YAML, or its aliases expand to more than
            :data:`MAX_YAML_VALUES` values.
    """
    text = read_text(path)
    try:
        value = _Loader(text).get_single_data()
        _expanded_size(value, {}, set())
        json.dumps(value, default=str, ensure_ascii=False).encode()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DataError(f"is not valid YAML{where}: {error.problem or error.context}", file=path) from None
    except yaml.YAMLError as error:
        raise DataError(f"is not valid YAML: {str(error).splitlines()[0]}", file=path) from None
    except RecursionError:
        raise DataError("is not usable YAML: it is nested too deeply", file=path) from None
    except UnicodeEncodeError:
        raise DataError("is not usable YAML: a string contains a lone surrogate", file=path) from None
    except (ValueError, TypeError) as error:
        raise DataError(f"is not usable YAML: {error}", file=path) from None
    return value


def _expanded_size(value: Any, known: dict[int, int], above: set[int]) -> int:
    """Return the number of values after aliases are expanded, without expanding them.

    Args:
        value: a value of the file.
        known: sizes that are already computed, by the identity of the value.
        above: identities of the values that contain ``value``.

    Raises:
        ValueError: there are too many values, or a value contains itself.
    """
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    else:
        return 1
    key = id(value)
    if key in above:
        raise ValueError("an alias is used inside the value that it names")
    if key not in known:
        total = 1 + sum(_expanded_size(part, known, above | {key}) for part in parts)
        if total > MAX_YAML_VALUES:
            raise ValueError(f"its aliases expand to more than {MAX_YAML_VALUES:,} values")
        known[key] = total
    return known[key]


def as_mapping(value: Any, file: object = None) -> dict[str, Any]:
    """Return a value after checking that it is a mapping with strings as keys.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, dict):
        raise DataError(f"expected `key: value` pairs at the top level, found {type(value).__name__}", file=file)
    wrong: list[Hashable] = [key for key in value if not isinstance(key, str)]
    if wrong:
        raise DataError(f"expected strings as keys, found {short_repr(wrong[0])}", file=file)
    return value
