"""Makes a manifest from a folder that has one folder of images per concept.

    pets/
      rex/           1.jpg 1.txt 2.jpg 3.jpg concept.yaml
      10_sks cat/    a.png b.heic metadata.jsonl

`concept.yaml` sets columns of the manifest (`initializer_token: dog`, ...). Instead, one `concepts.yaml` beside the
folders may set those of all: each folder's name, with its columns below it. Captions beside images become `captions`.
Nothing outside the folder is read, whatever links and settings in it say.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from textinv_ray.manifest import captions, concept_settings, folder_names, image_files, mask_files
from textinv_ray.manifest.concept_settings import Settings, leads_out
from textinv_ray.manifest.folder_names import KohyaName, Named, readable
from textinv_ray.manifest.image_columns import IMAGE_COLUMNS, schema
from textinv_ray.manifest.kinds import ImageSource
from textinv_ray.manifest.uris import locate
from textinv_ray.util.errors import UserError
from textinv_ray.util.files import read_regular
from textinv_ray.util.redact import redact, redact_text
from textinv_ray.util.text import nearest

_ROW_GROUP_BYTES = 64 * 2**20
_ROW_GROUP_ROWS = 10_000
_MAX_IMAGE_BYTES = 256 * 2**20  # a larger file is no training image


@dataclass
class Built:
    """What `build` wrote, and what it left out."""

    concepts: int = 0
    """Number of rows written."""
    images: int = 0
    """Number of images in all rows."""
    skipped: list[str] = field(default_factory=list)
    """Files and folders left out, each with the reason."""
    renamed: list[str] = field(default_factory=list)
    """Folders whose name can't be a concept_id, each with the id that was made of it."""
    notes: list[str] = field(default_factory=list)
    """What was made of files and names in the form of other programs."""
    without_initializer: list[str] = field(default_factory=list)
    """Ids of the concepts without an initializer_token."""


@dataclass(frozen=True)
class FolderConcept:
    """A row to write."""

    images: list[Path]
    settings: Settings
    masks: list[Path | None] = field(default_factory=list)
    """One for each image, or none at all."""

    @property
    def files(self) -> list[Path]:
        """Images and masks."""
        return [*self.images, *(mask for mask in self.masks if mask)]

    def row(self, base: Path, embed: bool) -> dict[str, object]:
        """All columns; images and masks with their bytes, or as paths from `base`. Raises UserError."""

        def source(path: Path) -> ImageSource:
            if embed:
                return {"bytes": _image_bytes(path), "path": readable(path.name)}
            return _image_uri(path, base)

        row = {**self.settings, "images": [source(path) for path in self.images]}
        if any(self.masks):
            row["masks"] = [mask and source(mask) for mask in self.masks]
        return row


@dataclass(frozen=True)
class _Folder:
    """A folder of the root, before its images are looked at."""

    path: Path
    settings: Settings
    kohya: KohyaName | None

    @property
    def shown(self) -> str:
        return readable(self.path.name)


def build(folder: str, out: str, *, embed: bool = False) -> Built:
    """Writes a manifest of the concepts in `folder` to `out`, a path or fsspec URI.

    Images are stored as paths relative to the manifest's folder; with `embed`, their bytes are stored instead.
    Raises UserError if there is no concept, or a concept.yaml is wrong; then `out` is not touched.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "isn't a folder" if root.exists() else "doesn't exist"
        raise UserError(f"{folder}: {what}; give the folder that holds one folder of images per concept")
    check_place(out, embed)
    built = Built()
    concepts = _concepts(root, built)
    first = next(concepts, None)
    if first is None:
        raise UserError(_nothing(root, built))
    write(itertools.chain([first], concepts), out, root, embed)
    return built


def check_place(out: str, embed: bool) -> str | None:
    """The local path of a manifest to write; None for one elsewhere. Raises UserError."""
    try:
        protocol, place = locate(out, os.getcwd())
    except ValueError as error:
        raise UserError(f"{redact(out)}: {error}") from None
    remote = protocol != "file"
    if remote and not embed:
        raise UserError(f"{redact(out)}: a manifest elsewhere can't point at local images; add --embed")
    return None if remote else place


def write(concepts: Iterator[FolderConcept], out: str, root: Path, embed: bool) -> None:
    """Writes a manifest of concepts whose images lie below `root`. Raises UserError; then `out` is untouched."""
    place = check_place(out, embed)
    if place is None:
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "manifest.parquet"
            with whole.open("wb") as file:
                _write(concepts, file, root, embed)
            _upload(whole, out)
    else:
        path = Path(place)
        partial = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
        except OSError as error:
            raise UserError(f"{out}: can't be written: {error.strerror}") from None
        try:
            with partial.open("wb") as file:
                _write(concepts, file, path.parent, embed)
            partial.replace(path)
        except IsADirectoryError:
            raise UserError(f"{out}: this is a folder; give the path of the file to write") from None
        finally:
            partial.unlink(missing_ok=True)


def _upload(whole: Path, out: str) -> None:
    """Replaces the file at a URI by a whole one. Raises UserError."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(out)
        filesystem.put_file(str(whole), path)
    except Exception as error:  # each file system has its own
        why = redact_text(str(error)).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{redact(out)}: can't be written: {why}") from None


def _concepts(root: Path, built: Built) -> Iterator[FolderConcept]:
    """Reads the folders one by one and counts them in `built`. Raises UserError."""
    folders = _folders(root, built)
    given = {folder.path.name: folder.settings.get("concept_id") for folder in folders}
    names = folder_names.named({name: None if value is None else str(value) for name, value in given.items()})
    metadata_file = root / captions.METADATA
    metadata = (
        captions.read_metadata(metadata_file)
        if metadata_file.is_file() and not leads_out(metadata_file, root)
        else {}
    )
    for folder in folders:
        concept = _concept(folder, names[folder.path.name], root, metadata, built)
        if not concept.images:
            built.skipped.append(f"{folder.shown}: has no images")
            continue
        concept_id = str(concept.settings["concept_id"])
        if "concept_id" not in folder.settings and concept_id != folder.path.name:
            built.renamed.append(f"{folder.shown!r} -> {concept_id}")
        if folder.kohya:
            built.notes.append(
                f"{folder.shown}: a folder of kohya's scripts: {folder.kohya.repeats} repeats are ignored, since "
                f"`steps` says how long is learned; the placeholder is {concept.settings['placeholder_token']}, the "
                f"initializer {concept.settings['initializer_token']}"
            )
        if "initializer_token" not in concept.settings:
            built.without_initializer.append(concept_id)
        built.concepts += 1
        built.images += len(concept.images)
        yield concept


def _folders(root: Path, built: Built) -> list[_Folder]:
    """The folders of concepts, with the settings of each. Raises UserError."""
    common = concept_settings.read_all(root)
    unused = set(common)
    found: list[_Folder] = []
    for entry in sorted(root.iterdir(), key=_natural):
        shown = readable(entry.name)
        if not entry.is_dir() or entry.name.startswith("."):
            if entry.name not in (concept_settings.ALL, captions.METADATA):
                built.skipped.append(f"{shown}: not a concept's folder")
            continue
        if leads_out(entry, root):
            built.skipped.append(f"{shown}: a link to a folder outside {root}")
            continue
        key = unicodedata.normalize("NFC", entry.name)
        unused.discard(key)
        settings, own = dict(common.get(key, {})), entry / concept_settings.ONE
        if own.is_symlink() or own.exists():
            if key in common:
                raise UserError(f"{own}: concepts.yaml describes this concept too; keep one of them")
            settings = concept_settings.read_one(own, root)
        kohya = folder_names.kohya_name(entry.name)
        found.append(_Folder(entry, settings, kohya))
    if unused:
        name = min(unused)
        near = nearest(name, [folder.path.name for folder in found])
        raise UserError(f"{root / concept_settings.ALL}: there is no folder {name!r}{near}")
    return found


def _concept(
    folder: _Folder, named: Named, root: Path, metadata: Mapping[str, str], built: Built
) -> FolderConcept:
    """The images and settings of one folder. `metadata`: captions by the image's path from `root`. Raises UserError."""
    settings: Settings = {"concept_id": named.concept_id}
    if named.placeholder_token:
        settings["placeholder_token"] = named.placeholder_token
    if folder.kohya:
        settings["initializer_token"] = folder.kohya.class_word
    settings |= folder.settings
    files = {file.name: file for file in sorted(folder.path.iterdir(), key=_natural)}
    masks, images, others = mask_files.MaskFiles(files), [], []
    for file in files.values():
        why = _why_not(file, root) or masks.take(file)
        if why is None:
            images.append(file)
        elif file.name.lower() in mask_files.FOLDERS and file.is_dir() and not leads_out(file, root):
            others += _masks_in(file, root, masks)
        elif why and file.name not in (concept_settings.ONE, captions.METADATA):
            others.append((file, why))
    prefix = f"{folder.path.name}/"
    of_images = {
        name.removeprefix(prefix): text for name, text in metadata.items() if name.startswith(prefix)
    }
    own_metadata = files.get(captions.METADATA)
    if own_metadata is not None and not leads_out(own_metadata, root):
        of_images |= captions.read_metadata(own_metadata)
    inside = {name: file for name, file in files.items() if not leads_out(file, root)}
    found = captions.beside(images, inside, of_images)
    stems = {name for image in images for name in (image.stem, image.name)}
    others += [(file, "a mask without an image of its name") for file in masks.without_image(images)]
    for file, why in others:
        if not (file.suffix.lower() in captions.SUFFIXES and file.stem in stems and file.name in inside):
            built.skipped.append(f"{folder.shown}/{readable(str(file.relative_to(folder.path)))}: {why}")
    built.skipped += [f"{folder.shown}/{line}" for line in found.ignored]
    if found.of_image and "captions" in settings:
        built.notes.append(
            f"{folder.shown}: captions beside the images are ignored: concept.yaml gives others"
        )
    elif found.of_image:
        # Captions count from the first image on.
        images.sort(key=lambda image: image.name not in found.of_image)
        settings["captions"] = _captions(
            folder, settings, [found.of_image[i.name] for i in images if i.name in found.of_image], built
        )
    for image in images:
        if not folder_names.is_text(str(image.relative_to(root))):
            name = f"{folder.shown}/{readable(image.name)}"
            built.notes.append(
                f"{name}: its name isn't UTF-8; without --embed, the manifest has its absolute URI"
            )
    of_images_masks = masks.of(images)
    if count := sum(mask is not None for mask in of_images_masks):
        built.notes.append(f"{folder.shown}: masks of {count} of its {len(images)} images")
    return FolderConcept(images, settings, of_images_masks)


def _masks_in(folder: Path, root: Path, masks: mask_files.MaskFiles) -> list[tuple[Path, str]]:
    """Takes the masks in a folder of masks. Returns the other files in it, each with the reason."""
    others = []
    for file in sorted(folder.iterdir(), key=_natural):
        if why := _why_not(file, root):
            others.append((file, why))
        else:
            masks.add(file)
    return others


def _captions(folder: _Folder, settings: Settings, texts: list[str], built: Built) -> list[str]:
    """The captions with `{}` for the word."""
    triggers = [
        str(settings.get("placeholder_token", "")),
        folder.kohya.trigger if folder.kohya else folder.path.name,
    ]
    marked = [
        captions.with_word(text, triggers, str(settings.get("initializer_token", ""))) for text in texts
    ]
    unnamed = sum(not names_word for _, names_word in marked)
    note = f"{folder.shown}: {len(texts)} captions beside the images"
    built.notes.append(
        note + (f"; '{{}}, ' was put before {unnamed} that don't name the concept" if unnamed else "")
    )
    return [text for text, _ in marked]


def _why_not(file: Path, root: Path) -> str:
    """Why a file of a concept's folder is neither an image nor a mask; empty if it is."""
    if file.name.startswith("."):
        return "hidden"
    if file.is_dir():
        return "a folder"
    if file.suffix.lower() not in image_files.SUFFIXES:
        return "not an image"
    try:
        if leads_out(file, root):
            return f"a link to a file outside {root}"
        head = read_regular(file, image_files.HEAD_BYTES)
    except OSError as error:
        return error.strerror or str(error)
    return image_files.why_not_an_image(head)


def _image_bytes(path: Path) -> bytes:
    try:
        data = read_regular(path, _MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{readable(str(path))}: can't be read: {error.strerror or error}") from None
    if len(data) > _MAX_IMAGE_BYTES:
        raise UserError(f"{readable(str(path))}: is larger than {_MAX_IMAGE_BYTES // 2**20} MiB")
    return data


def _image_uri(path: Path, base: Path) -> str:
    """The path from `base`; the absolute URI if the name isn't text."""
    if not folder_names.is_text(str(path)):
        return Path(os.path.abspath(path)).as_uri()
    relative = Path(os.path.relpath(path, base)).as_posix()
    return f"./{relative}" if re.match(r"[^/]*:|~", relative) else relative


def _write(concepts: Iterator[FolderConcept], file: IO[bytes], base: Path, embed: bool) -> None:
    """Writes row groups small enough to be held in memory, whatever the number of concepts."""
    columns = schema(IMAGE_COLUMNS if embed else ())
    with pq.ParquetWriter(file, columns) as writer:
        pending: list[dict[str, object]] = []
        size = 0
        for concept in concepts:
            pending.append(concept.row(base, embed))
            if embed:
                size += sum(path.stat().st_size for path in concept.files)
            if size >= _ROW_GROUP_BYTES or len(pending) >= _ROW_GROUP_ROWS:
                writer.write_table(_table(pending, columns))
                pending, size = [], 0
        if pending:
            writer.write_table(_table(pending, columns))


def _table(rows: list[dict[str, object]], columns: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, columns)
    except (pa.ArrowInvalid, pa.ArrowCapacityError):
        ids = ", ".join(str(row["concept_id"]) for row in rows[-3:])
        raise UserError(
            f"{ids}: the images of a concept are larger than 2 GiB together; leave out --embed"
        ) from None


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _nothing(root: Path, built: Built) -> str:
    layout = f"expected {root}/<concept>/*.jpg (or .png, .webp, ...)"
    if any(path.suffix.lower() in image_files.SUFFIXES for path in root.iterdir()):
        return f"{root}: images lie directly in it; put each concept's into a folder of its own ({layout})"
    folders = [path for path in root.iterdir() if path.is_dir()]
    what = f"none of its {len(folders)} folders has images" if folders else "has no folders of images"
    reasons = [line for line in built.skipped if "/" in line][:3]
    return f"{root}: {what}; {layout}" + "".join(f"\n  {reason}" for reason in reasons)
