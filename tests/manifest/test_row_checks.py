"""Checks of rows: what is refused, with its message, and what is fine."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from tests.support import tiny
from tests.support.tables import CONFIG, WITHOUT_DEFAULT, Write, good, problems
from textinv_ray.config.job import JobConfig
from textinv_ray.config.model_families import FLUX, SANA, STABLE_DIFFUSION
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"concept_id": ["c0", "a/b", "c2"]},
            "row 1 (a/b), column 'concept_id': 'a/b' has a path separator; use letters, digits, '.', '_' ",
        ),
        ({"concept_id": ["c0", "a\\b", "c2"]}, "has a path separator"),
        ({"concept_id": ["c0", "..", "c2"]}, "row 1 (..), column 'concept_id': '..' is not a safe name"),
        ({"concept_id": ["c0", "ä", "c2"]}, "'ä' is not a safe name"),
        ({"concept_id": ["c0", "a\n", "c2"]}, r"'a\n' is not a safe name"),
        ({"concept_id": ["c0", "x" * 129, "c2"]}, "is too long; use"),
        ({"concept_id": ["c0", "", "c2"]}, "row 1, column 'concept_id': is empty; every concept needs an id"),
        ({"concept_id": ["c0", None, "c2"]}, "row 1, column 'concept_id': is empty"),
        (
            {"concept_id": ["c0", "c1", "c0"]},
            "row 2 (c0), column 'concept_id': 'c0' is used by row 0 already; give each concept its own",
        ),
        (
            {"placeholder_token": ["<x>", "<y>", "<X>"]},
            "row 2 (c2), column 'placeholder_token': '<X>' is used by row 0 already; tokenizers ignore case",
        ),
        (
            {"placeholder_token": [None, "<C0>", None]},
            "row 1 (c1), column 'placeholder_token': '<C0>' is used by",
        ),
        (
            {"placeholder_token": [None, "my cat", None]},
            "column 'placeholder_token': 'my cat' is not one word; use something like '<cat-toy>', without",
        ),
        ({"placeholder_token": [None, "", None]}, "'' is not one word"),
        ({"placeholder_token": [None, "{}", None]}, "'{}' is not one word"),
        (
            {"initializer_token": ["cat", "", "cat"]},
            "row 1 (c1), column 'initializer_token': is empty; name a word",
        ),
        ({"initializer_token": ["cat", "\u200b\u3000", "cat"]}, "column 'initializer_token': is empty"),
        ({"initializer_token": ["cat", " \t", "cat"]}, "row 1 (c1), column 'initializer_token': is empty"),
        ({"learnable_property": ["object", "stile", None]}, "'stile' is neither 'object' nor 'style'"),
        (
            {"images": [["a"], [], ["b"]]},
            "row 1 (c1), column 'images': has no images; give 1 or more (3 to 5 are best)",
        ),
        ({"images": [["a"], None, ["b"]]}, "row 1 (c1), column 'images': has no images"),
        ({"images": [["a"], ["b", None], ["c"]]}, "row 1 (c1), column 'images': an image has no URI"),
        ({"images": [["a"], ["b", ""], ["c"]]}, "row 1 (c1), column 'images': an image has no URI"),
        (
            {"images": [["a"], ["b", "ftp://me:SECRET@h/x"], ["S3://c"]]},
            "row 1 (c1), column 'images': 'ftp://h/x': protocol not among data.allowed_protocols (file, http",
        ),
        (
            {"images": [["a"], ["file://data/x.png"], ["file:/data/x.png"]]},
            "row 1 (c1), column 'images': 'file://data/x.png': file: URIs name an absolute path, as in file:///",
        ),
        (
            {"images": [["a"], ["data:image/png;base64,SECRET"], ["~/x.png"]]},
            "row 1 (c1), column 'images': 'data:...': data: URIs aren't read; store the image's bytes in the",
        ),
        (
            {"masks": [None, ["1.png", None], []]},
            "row 1 (c1), column 'masks': has 2 masks for 1 images; give one per image, null for an image without one",
        ),
        (
            {"masks": [None, [""], None]},
            "row 1 (c1), column 'masks': a mask is empty text; give null for an image without one",
        ),
        ({"masks": [["ftp://x"], [None], None]}, "row 0 (c0), column 'masks': 'ftp://x': protocol not among"),
        (
            {"masks": [[1], [2], [3]]},
            "column 'masks': has the type list<element: int64>; expected: list of strings",
        ),
        (
            {"captions": [None, ["a {}", "b {}"], []]},
            "row 1 (c1), column 'captions': has 2 captions for 1 images; give at most one per image",
        ),
        (
            {"captions": [None, ["a cat"], []]},
            "row 1 (c1), column 'captions': 'a cat' doesn't say where the word goes; write {} there",
        ),
        ({"prompts": [None, ["a {}", None], []]}, "row 1 (c1), column 'prompts': has an empty entry"),
        ({"templates": [None, ["a {}", "b"], []]}, "row 1 (c1), column 'templates': 'b' doesn't say where"),
        (
            {"steps": [0, -1, None]},
            "row 1 (c1), column 'steps': -1 is out of range; give a whole number >= 0 and <= 1000000",
        ),
        ({"steps": [1.0, 1.5, None]}, "row 1 (c1), column 'steps': 1.5 is out of range; give a whole number"),
        ({"steps": [1.0, float("nan"), None]}, "column 'steps': nan is out of range"),
        (
            {"learning_rate": [1e-3, 0.0, None]},
            "row 1 (c1), column 'learning_rate': 0.0 is out of range; give a number > 0 and <= 10",
        ),
        ({"learning_rate": [1e-3, float("inf"), None]}, "column 'learning_rate': inf is out of range"),
        ({"batch_size": [1, 5000, None]}, "row 1 (c1), column 'batch_size': 5000 is out of range"),
        ({"num_vectors": [1, 65, None]}, "row 1 (c1), column 'num_vectors': 65 is out of range"),
        ({"seed": [1, -1, None]}, "row 1 (c1), column 'seed': -1 is out of range; give a whole number >= 0"),
        (
            {"seed": pa.array([1, 2**63, None], pa.uint64())},
            "column 'seed': 9223372036854775808 is out of range",
        ),
    ],
)
def test_a_wrong_row(write: Write, columns: dict[str, Any], expected: str) -> None:
    found = problems(write(**good(**columns)))
    assert len(found) == 1
    assert expected in found[0]
    assert "SECRET" not in found[0]


def test_an_initializer_is_needed_unless_the_configuration_has_one(write: Write) -> None:
    path = write(**good(initializer_token=["cat", None, "cat"]))
    assert problems(path) == []
    (found,) = problems(path, WITHOUT_DEFAULT)
    assert found.startswith("row 1 (c1), column 'initializer_token': is missing; name a word or phrase near")
    columns = good()
    del columns["initializer_token"]
    assert len(problems(write(**columns), WITHOUT_DEFAULT)) == 3


def test_who_needs_no_initializer(write: Write) -> None:
    starts = ["auto", None, "vocabulary_mean"]
    path = write(**good(initializer_token=pa.nulls(3, pa.string()), init_from=starts))
    (found,) = problems(path, WITHOUT_DEFAULT)
    assert found.startswith("row 1 (c1), column 'initializer_token': is missing")
    auto = JobConfig.load("mini", ["training.initializer_token=null", "training.init_from=auto"])
    assert problems(path, auto) == []


def test_words_of_the_tokenizer(write: Write) -> None:
    columns = good(
        4, placeholder_token=["<new>", "Cat", "<|endoftext|>", None], initializer_token=["a cat"] * 4
    )
    found = problems(write(**columns), tokenizers={"clip_l": tiny.tokenizer()})
    assert found == [
        "row 1 (c1), column 'placeholder_token': 'Cat' is already a word of the model's tokenizer; "
        "use a new one like '<Cat>'",
        "row 2 (c2), column 'placeholder_token': '<|endoftext|>' is already a word of the model's tokenizer; "
        "use a new one like '<<|endoftext|>>'",
    ]


def test_an_initializer_that_gives_no_token(write: Write) -> None:
    tokens = ["<|startoftext|>", "<|endoftext|>", "c", "a", "t</w>", "ca", "cat</w>"]
    ids = {token: number for number, token in enumerate(tokens)}
    of_one_word = CLIPTokenizer(vocab=ids, merges=[("c", "a"), ("ca", "t</w>")])

    path = write(**good(initializer_token=["cat", "黒猫", "blue cat"]))
    assert problems(path, tokenizers={"clip_l": tiny.tokenizer()}) == []
    assert problems(path, tokenizers={"clip_l": of_one_word}) == [
        "row 1 (c1), column 'initializer_token': '黒猫' gives no token of the model's tokenizer; use another"
    ]


def test_local_files_can_be_forbidden(write: Write) -> None:
    path = write(**good(images=[["/etc/passwd"], ["x/../y.png"], ["s3://b/x"]]))
    found = problems(path, JobConfig.load("mini", ["data.allowed_protocols=[s3]"]))
    assert [line.split(",")[0] for line in found] == ["row 0 (c0)", "row 1 (c1)"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "vectors_added_at",
            [200],
            "200 is not a step between 1 and 199, the last at which a vector can join",
        ),
        ("vectors_added_at", [5, 0], "0 is not a step between 1 and 199"),
        ("vectors_added_at", [None], "None is not a step between 1 and 199"),
        ("vectors_added_at", [1] * 64, "makes 65 vectors; a word has at most 64"),
        ("regularization_weight", -0.5, "-0.5 is out of range; give a number >= 0"),
        ("per_image_probability", 1.5, "1.5 is out of range; give a number >= 0 and <= 1"),
        ("norm_weight", float("nan"), "nan is out of range; give a number >= 0"),
        ("norm_control", "off", "'off' is none of 'none', 'rescale', 'regularize'"),
        ("optimizer", "sgd", "'sgd' is neither 'adam' nor 'directional'"),
        ("direction_prior", -1.0, "-1.0 is out of range; give a number >= 0"),
        ("context_weight", -1.0, "-1.0 is out of range; give a number >= 0"),
        (
            "init_from",
            " ",
            "is empty; give auto, vocabulary_mean, or a learned_embeds.safetensors",
        ),
        (
            "init_from",
            "mean",
            "'mean': is neither auto, vocabulary_mean nor the path or URI of a",
        ),
        ("init_from", "word.pt", "'word.pt': is neither auto, "),
        ("init_from", "ssh://me:SECRET@h/a.safetensors", "'ssh://h/a.safetensors': protocol not among data"),
    ],
)
def test_variants_that_are_refused(write: Write, column: str, value: Any, message: str) -> None:
    (found,) = problems(write(**good(3, **{column: [None, value, None]})))
    assert found.startswith(f"row 1 (c1), column {column!r}: {message}")


def test_variants_that_are_fine(write: Write) -> None:
    columns: dict[str, Any] = {
        "vectors_added_at": [[5, 5], [], None],
        "regularization_weight": [0, 1.5, None],
        "per_image_probability": [0.25, 1, None],
        "norm_control": ["none", "rescale", "regularize"],
        "norm_weight": [None, 2.0, 0.0],
        "optimizer": ["adam", "directional", None],
        "direction_prior": [None, 1e-4, 0.0],
        "context_weight": [None, 1e-4, 0.0],
        "init_from": ["auto", "../out/concepts/a/learned_embeds.safetensors", "s3://b/a.safetensors"],
    }
    path = write(**good(**columns))
    assert problems(path) == []
    rows = list(Manifest.open(path).rows())
    assert [row.get("vectors_added_at") for row in rows] == [[5, 5], [], None]


def test_a_configuration_may_add_vectors_later_than_a_row_has_steps(write: Write) -> None:
    config = JobConfig.load("mini", ["training.vectors_added_at=[50]"])
    (found,) = problems(write(**good(steps=[50, 51, None])), config)
    assert found.startswith("row 0 (c0), column 'vectors_added_at': 50 is not a step between 1 and 49")


def test_vectors_that_are_added_to_a_warm_start(write: Write) -> None:
    """A row that starts from a file takes the steps of `training.warm_start`."""
    settings = ["training.vectors_added_at=[50]", "training.steps=300", "training.warm_start.steps=40"]
    config = JobConfig.load("mini", settings)
    start = ["p.safetensors", None, "auto"]
    path = write(**good(init_from=start, initializer_token=[None] * 3, steps=[None] * 3))
    (found,) = problems(path, config)
    assert found.startswith("row 0 (c0), column 'vectors_added_at': 50 is not a step between 1 and 39")
    longer = config.override(["training.steps=40", "training.warm_start.steps=300"])
    assert [line.split(",")[0] for line in problems(path, longer)] == ["row 1 (c1)", "row 2 (c2)"]
    everywhere = config.override(["training.init_from=p.safetensors"])
    assert [line.split(",")[0] for line in problems(path, everywhere)] == ["row 0 (c0)", "row 1 (c1)"]


WRONG = {
    "concept_id": st.sampled_from(["a/b", "", "x" * 200, "ü"]),
    "images": st.sampled_from([[], None, [""]]),
    "steps": st.integers(-5, -1),
    "learning_rate": st.floats(-1, 0),
    "learnable_property": st.text(min_size=7),
    "captions": st.just(["no word"]),
    "prompts": st.just([None]),
}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_wrong_cell_is_reported_and_no_other(write: Write, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20))
    columns = good(
        count,
        steps=[5] * count,
        learning_rate=[0.1] * count,
        learnable_property=["style"] * count,
        captions=[["a {}"]] * count,
        prompts=[["a {}"]] * count,
    )
    cells = data.draw(st.sets(st.tuples(st.integers(0, count - 1), st.sampled_from(list(WRONG)))))
    for row, name in cells:
        # A row without images isn't told about its captions as well; an id twice is another problem.
        value = data.draw(WRONG[name])
        if name == "concept_id" and value in columns[name]:
            value = f"{row}/"
        columns[name] = [*columns[name][:row], value, *columns[name][row + 1 :]]
    schema = pa.schema({"images": pa.list_(pa.string()), "prompts": pa.list_(pa.string())})
    for field in schema:
        columns[field.name] = pa.array(columns[field.name], field.type)
    opened = Manifest.open(write(**columns))
    found = {(problem.row, problem.column) for problem in checks.problems(opened, CONFIG)}
    assert found == cells


IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "an image is null"),
        ({"bytes": None, "path": None}, "an image has neither bytes nor a path"),
        ({"bytes": None, "path": ""}, "an image has neither bytes nor a path"),
        ({"bytes": b"", "path": "a.png"}, "an image's bytes are empty"),
        (
            {"bytes": None, "path": "ftp://h/a.png"},
            "'ftp://h/a.png': protocol not among data.allowed_protocols",
        ),
    ],
)
def test_embedded_images_that_are_not_there(write: Write, image: Any, message: str) -> None:
    fine = {"bytes": b"x", "path": "ftp://the/name/alone"}
    path = write(**good(images=pa.array([[fine], [fine, image], [fine]], IMAGES)))
    (found,) = checks.problems(Manifest.open(path), CONFIG, image_bytes=True)
    assert str(found).startswith(f"row 1 (c1), column 'images': {message}")
    if image is None:  # which is known without the bytes
        assert [str(found)] == problems(path)


def test_context_regularisation_without_effect_is_found_before_the_job(write: Write) -> None:
    path = write(**good(context_weight=[0.0, 0.01, None]))
    opened = Manifest.open(path)
    assert not [*checks.problems(opened, CONFIG), *checks.problems(opened, CONFIG, family=STABLE_DIFFUSION)]
    (problem,) = checks.problems(opened, CONFIG, family=SANA)
    assert (problem.row, problem.column) == (1, "context_weight")
    assert problem.message == (
        "context regularisation acts on vectors for CLIP and T5 (of Sana: none); set it to 0"
    )
    clip_alone = CONFIG.override(["training.encoders=[clip_l]"])
    assert [found.row for found in checks.problems(opened, clip_alone, family=FLUX)] == [1]
    assert not list(checks.problems(opened, CONFIG, family=FLUX))


def test_embedded_masks(write: Write) -> None:
    """Null, and a struct of nulls, is an image without a mask."""
    nothing, empty = {"bytes": None, "path": None}, {"bytes": b"", "path": None}
    path = write(**good(masks=pa.array([[None], [nothing], [empty]], IMAGES)))
    (problem,) = checks.problems(Manifest.open(path), CONFIG, image_bytes=True)
    assert (problem.row, problem.column, problem.message) == (2, "masks", "a mask's bytes are empty")
    assert [row["masks"] for row in Manifest.open(path).rows()] == [[None], [None], [empty]]


def test_paths_alone_in_structs(write: Write) -> None:
    kind = pa.list_(pa.struct({"path": pa.string()}))
    path = write(
        **good(images=pa.array([[{"path": "a.png"}], [{"path": None}], [{"path": "ftp://x"}]], kind))
    )
    found = [str(problem) for problem in checks.problems(Manifest.open(path), CONFIG, image_bytes=True)]
    assert [line.split(",")[0] for line in found] == ["row 1 (c1)", "row 2 (c2)"]
