"""Reading users' text, JSON and YAML: whatever is wrong with a file is a :class:`DataError` that says where."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from instructedit.errors import DataError

#: Values that a YAML file may stand for once its aliases are written out; a few lines of aliases can mean billions.
MAX_YAML_VALUES = 1_000_000
#: Brackets inside each other in a YAML file; the reader's time grows with the square of their number.
MAX_YAML_NESTING = 100
#: A wrong value is repeated in a message up to this many characters.
MAX_REPR_LENGTH = 200


def short_repr(value: object) -> str:
    """``repr`` of a user's value for a message, cut to :data:`MAX_REPR_LENGTH` characters."""
    text = repr(value)
    return text if len(text) <= MAX_REPR_LENGTH else f"{text[:MAX_REPR_LENGTH]}… ({len(text):,} characters)"


def read_bytes(path: str | Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None
    except ValueError as error:  # a NUL character in the path
        raise DataError(f"is not a file name: {error}", file=repr(str(path))) from None


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 text file.

    Raises:
        DataError: it cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start})", file=path) from None


def parse_json(text: str, *, file: object = None, place: str = "", lone_surrogates: bool = False) -> Any:
    """The value of a JSON text, by the standard: no NaN, no infinity, no half of a surrogate pair.

    Args:
        file: the file that the text stands in.
        place: where in the file, for messages (``line 3``); a text that is a whole file has none.
        lone_surrogates: let halves of surrogate pairs through, for texts that are kept as they came.

    Raises:
        DataError: it is not JSON, nests too deeply, or holds a number or character that nothing here can hold.
    """
    prefix = f"{place} " if place else ""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        # Strings that are no Unicode text ("\\ud800") pass the parser, and fail wherever they are printed or written.
        # The same for numbers beyond a float's range (1e999), which become infinity.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode(
            errors="surrogatepass" if lone_surrogates else "strict"
        )
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if place else f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{prefix}is not valid JSON at {where}: {error.msg}. The file may be truncated; copy it again.", file=file
        ) from None
    except RecursionError:
        raise DataError(f"{prefix}is not usable JSON: it nests too deeply", file=file) from None
    except UnicodeEncodeError:
        raise DataError(
            f"{prefix}is not usable JSON: a string holds half of a surrogate pair (\\ud800 to \\udfff)", file=file
        ) from None
    except ValueError as error:  # a number of thousands of digits, or none that JSON has
        raise DataError(f"{prefix}is not usable JSON: {str(error).split(';')[0]}", file=file) from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def read_json_file(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: it cannot be read, is not UTF-8 or is not JSON.
    """
    return parse_json(read_text(path), file=path)


class _Loader(yaml.SafeLoader):
    """The safe loader; what a value's type refuses (``2024-13-45``, ``!!int abc``) is said with its line."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - PyYAML's
        if self.flow_level >= MAX_YAML_NESTING:
            raise yaml.scanner.ScannerError(None, None, "brackets nest too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, AttributeError, KeyError, TypeError) as error:
            if isinstance(error, yaml.YAMLError):
                raise
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def read_yaml_file(path: str | Path) -> Any:
    """The value of a user's YAML file.

    Raises:
        DataError: it cannot be read, is not UTF-8, is not YAML, or its aliases stand for more than
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
        raise DataError("is not usable YAML: it nests too deeply", file=path) from None
    except UnicodeEncodeError:
        raise DataError("is not usable YAML: a string holds half of a surrogate pair", file=path) from None
    except (ValueError, TypeError) as error:
        raise DataError(f"is not usable YAML: {error}", file=path) from None
    return value


def _expanded_size(value: Any, known: dict[int, int], above: set[int]) -> int:
    """How many values there are once aliases are written out; each shared part is counted once and multiplied.

    Raises:
        ValueError: too many, or a value that contains itself.
    """
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    else:
        return 1
    key = id(value)
    if key in above:
        raise ValueError("an alias stands inside the value that it names")
    if key not in known:
        total = 1 + sum(_expanded_size(part, known, above | {key}) for part in parts)
        if total > MAX_YAML_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_YAML_VALUES:,} values")
        known[key] = total
    return known[key]


def as_mapping(value: Any, file: object = None) -> dict[str, Any]:
    """The value, if it is an object with texts as keys.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, dict):
        raise DataError(f"expected `key: value` pairs at the top level, found {type(value).__name__}", file=file)
    wrong: list[Hashable] = [key for key in value if not isinstance(key, str)]
    if wrong:
        raise DataError(f"expected texts as keys, found {short_repr(wrong[0])}", file=file)
    return value
