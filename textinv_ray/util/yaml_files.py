"""The one reader of YAML: presets, --set, concept.yaml. What is parsed is limited, whoever wrote it.

PyYAML follows any depth, lets aliases multiply, and takes the last of two equal keys.
"""

from __future__ import annotations

import os
import re

import yaml

from textinv_ray.util.errors import UserError
from textinv_ray.util.files import read_regular
from textinv_ray.util.redact import redact_text
from textinv_ray.util.text import one_line

MAX_BYTES = 2**20
"""Size of a file, unless the caller allows more."""
MAX_DEPTH = 32
"""Levels of lists and mappings in each other."""
MAX_NODES = 1_000_000
"""Values of a document, those behind an alias counted at each of its uses."""
_QUOTE = "; quote a text that begins with one of {}[]&*!|>%@` or has ': ' in it"
_BEGINS_WITH_BRACES = re.compile(r"(?:^|[-:,\[]\s+|\[)(\{\}[^,\]#]*[^,\]#\s])")
_LOOKS_UNQUOTED = re.compile(r"(?:^|[-:,\[] +)[{\[&*!|>%@`].|: .*: ?|^\s*- +[^'\"].*: ")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read(path: str | os.PathLike[str], source: str, max_bytes: int = MAX_BYTES) -> object:
    """The document in a file. `source`: its name in messages. Raises UserError."""
    try:
        data = read_regular(path, max_bytes + 1)
    except FileNotFoundError:
        raise UserError(f"{source}: doesn't exist") from None
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise UserError(f"{source}: is larger than {max_bytes / 2**20:g} MiB")
    return parse(data, source)


def parse(text: str | bytes, source: str) -> object:
    """The document in a text; None for an empty one. Raises UserError that names `source` and the line."""
    if isinstance(text, bytes):
        text = _decoded(text, source)
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        where = f"line {mark.line + 1}: " if mark and "\n" in text.strip() else ""
        hint = _hint(line) if isinstance(error, yaml.parser.ParserError | yaml.scanner.ScannerError) else ""
        problem = redact_text(one_line(f"{error.problem or error.context}", 200))
        raise UserError(f"{source} is not valid YAML: {where}{problem}{hint}") from None
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{source} is not valid YAML: line {line_number}: there is the control character "
            f"U+{error.character:04X}"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as the date 2024-13-45
        why = (
            "a number has too many digits"
            if "int_max_str_digits" in str(error)
            else one_line(str(error), 200)
        )
        raise UserError(f"{source} is not valid YAML: {why}") from None


def _hint(line: str) -> str:
    """What to do about a line that the parser doesn't understand; empty if that isn't clear."""
    found = _BEGINS_WITH_BRACES.search(line)
    if found:
        return f'; quote it: "{redact_text(one_line(found.group(1), 80))}"'
    return _QUOTE if _LOOKS_UNQUOTED.search(line) else ""


def _decoded(data: bytes, source: str) -> str:
    if data.startswith(b"PAR1"):
        raise UserError(f"{source}: this is a Parquet file and not YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}: isn't UTF-8 text (line {line}); save it as UTF-8") from None


class _Loader(yaml.SafeLoader):
    """Also reads 5e-3 as a number: YAML 1.1 requires a decimal point (5.0e-3) and reads it as a string."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}
        """By the id of a node that is complete: its values, those behind aliases counted at each use."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node with all below it. Raises ComposerError beyond the limits."""
        mark = self.peek_event().start_mark
        if self._depth >= MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"lists and mappings lie more than {MAX_DEPTH} deep", mark
            )
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias stands within what it stands for", mark)
        if node is not None and not is_alias:
            self._sizes[id(node)] = size = self._size(node)
            if size > MAX_NODES:
                raise yaml.composer.ComposerError(
                    None, None, f"aliases make more than {MAX_NODES} values of it", mark
                )
        return node

    def _size(self, node: yaml.Node) -> int:
        below: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            below = node.value
        elif isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        return 1 + sum(self._sizes[id(part)] for part in below)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """A mapping. Raises ConstructorError for a key that is there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{one_line(key.value, 80)!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A text. Escaped surrogate pairs, as JSON writes them, become one character; half of one is an error."""
        text = str(self.construct_scalar(node))
        if not _SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise yaml.constructor.ConstructorError(
                None, None, "there is half of a surrogate pair in the text", node.start_mark
            ) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
