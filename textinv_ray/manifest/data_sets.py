"""The manifest of a protocol's data set, from the folders that the data set comes in (`textinv manifest --protocol`).

A row per subject: its concept_id is the subject's name in the protocol, by which `textinv evaluate --protocol` finds
its prompts. Names and counts are checked, so that a download that isn't complete isn't evaluated as if it were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from textinv_ray.config.protocol import DataSet, ProtocolData, Subject
from textinv_ray.config.training import LearnableProperty
from textinv_ray.manifest import image_files
from textinv_ray.manifest.build import Built, FolderConcept, check_place, write
from textinv_ray.util.errors import UserError
from textinv_ray.util.files import read_regular
from textinv_ray.util.text import nearest, one_line

_SHOWN = 10  # of the things that are wrong with a data set
_MAX_CAPTIONS_BYTES = 2**16
_LIVE = ("animal", "human")
"""Folders of living subjects in a data set with captions."""


@dataclass(frozen=True)
class _Captions:
    """A subject of a data set with captions."""

    concept_id: str
    subject: Subject
    prompts: tuple[str, ...]
    """With `{}` for the word."""
    image: Path


def build(definition: ProtocolData, name: str, folder: str, out: str, *, embed: bool = False) -> Built:
    """Writes the manifest of a protocol's data set in `folder` to `out`, a path or fsspec URI.

    Raises UserError for a protocol without a data set, and when names or numbers aren't those of the data set.
    """
    data = definition.data
    if data is None:
        raise UserError(f"the protocol {name!r} has no data set: it evaluates the words of any manifest")
    root = _root(folder, data, definition)
    check_place(out, embed)
    if data.layout == "captions":
        found = _captions(root, definition, data)
        images = {one.concept_id: [one.image] for one in found}
        subjects: Mapping[str, Subject] = {one.concept_id: one.subject for one in found}
        skipped: list[str] = []
    else:
        images, skipped = _folders(root, definition, data)
        subjects = definition.subjects
    built = Built(len(images), sum(map(len, images.values())), skipped)

    def concepts() -> Iterator[FolderConcept]:
        for concept_id, paths in images.items():
            yield FolderConcept(paths, _settings(concept_id, subjects[concept_id], name))

    write(concepts(), out, root, embed)
    return built


def with_captions(definition: ProtocolData, folder: str) -> ProtocolData:
    """The protocol with the subjects and prompts of a data set in whose caption files they are. Raises UserError."""
    data = definition.data
    if data is None:
        return definition
    found = _captions(_root(folder, data, definition), definition, data)
    return definition.model_copy(
        update={
            "subjects": {one.concept_id: one.subject for one in found},
            "prompts": {one.subject.prompts: {"all": one.prompts} for one in found},
        }
    )


def _settings(concept_id: str, subject: Subject, protocol: str) -> dict[str, object]:
    tags = {"protocol": protocol, "class": subject.class_word}
    return {
        "concept_id": concept_id,
        "initializer_token": subject.class_word.lower(),
        "learnable_property": subject.learnable_property,
        "tags": tags | ({"group": subject.group} if subject.group else {}),
    }


def _root(folder: str, data: DataSet, definition: ProtocolData) -> Path:
    """The folder with the data set's own folders, which is `folder` or one below it. Raises UserError."""
    given = Path(folder).expanduser()
    if not given.is_dir():
        what = "isn't a folder" if given.exists() else "doesn't exist"
        raise UserError(f"{folder}: {what}; {definition.title} is not part of this package: {data.where}")
    return next((given / name for name in data.folders if (given / name).is_dir()), given)


def _folders(root: Path, definition: ProtocolData, data: DataSet) -> tuple[dict[str, list[Path]], list[str]]:
    """The images of each subject, and what was left out. Raises UserError."""
    there = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    wrong, images = [], {}
    for name, subject in definition.subjects.items():
        if name not in there:
            wrong.append(f"{name}: has no folder{nearest(name, [*there])}")
            continue
        images[name] = _images(there[name])
        count = len(images[name])
        if not count or (subject.images is not None and count != subject.images):
            expected = "at least 1" if subject.images is None else str(subject.images)
            wrong.append(f"{name}: has {count} images, expected {expected}")
    _raise(root, wrong, definition, data)
    others = [name for name in there if name not in definition.subjects and not name.startswith(".")]
    return images, [f"{one_line(name, 100)}: no subject of {definition.title}" for name in others]


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in image_files.SUFFIXES and not path.name.startswith(".")
    )


def _captions(root: Path, definition: ProtocolData, data: DataSet) -> list[_Captions]:
    """The subjects of a data set with captions, by the rules of its own reader. Raises UserError."""
    texts = sorted((root / "captions").rglob("*.txt"))
    wrong, found = [], []
    for text in texts:
        where = text.relative_to(root / "captions")
        image = next(
            (
                path
                for suffix in sorted(image_files.SUFFIXES)
                if (path := root / "images" / where.with_suffix(suffix)).is_file()
            ),
            None,
        )
        data_lines = read_regular(text, _MAX_CAPTIONS_BYTES).decode("utf-8", "replace").splitlines()
        lines = [line.strip() for line in data_lines if line.strip()]
        if image is None:
            wrong.append(f"captions/{where}: there is no such image below images")
        elif len(lines) != 1 + data.prompts_per_subject:
            wrong.append(
                f"captions/{where}: has {len(lines)} lines, expected the subject and {data.prompts_per_subject} prompts"
            )
        else:
            found.append(_of_captions(where, lines, image))
    if not wrong and len(found) != data.subjects:
        wrong.append(f"{len(found)} subjects, expected {data.subjects}")
    _raise(root, wrong, definition, data)
    return found


def _of_captions(where: Path, lines: list[str], image: Path) -> _Captions:
    category, name = where.parent.name, lines[0]
    folder = f"live_subject_{category}" if category in _LIVE else category
    concept_id = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{folder}_{where.stem}_{name.lower()}").strip("._")
    kind: LearnableProperty = "style" if category == "style" else "object"
    subject = Subject(class_word=name, prompts=concept_id, images=1, group=category, learnable_property=kind)
    return _Captions(concept_id, subject, tuple(_with_word(line, name) for line in lines[1:]), image)


def _with_word(caption: str, name: str) -> str:
    """A caption with `{}` in place of the subject's name; before it where it doesn't have the name."""
    text = caption.replace("{", "(").replace("}", ")")
    marked = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "{}", text, count=1, flags=re.IGNORECASE)
    return marked if "{}" in marked else f"{{}}, {text}"


def _raise(root: Path, wrong: list[str], definition: ProtocolData, data: DataSet) -> None:
    if wrong:
        more = [f"  ... and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        lines = [f"  {line}" for line in wrong[:_SHOWN]] + more
        raise UserError(f"{root}: this isn't all of {definition.title} ({data.where}):\n" + "\n".join(lines))
