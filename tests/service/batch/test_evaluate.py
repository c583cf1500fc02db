"""`textinv evaluate` with real Ray, store and MLflow; nothing is evaluated twice."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import examples
from tests.support.commands import finished, script, textinv
from tests.support.mlflow import Database, write_view
from textinv_ray.service.batch import evaluate
from textinv_ray.service.store.store import Store


@pytest.fixture
def store(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip, "service.workers=1"), tmp_path)
    for index, concept_id in enumerate(("a", "b")):
        vectors = torch.randn(1, 32, generator=torch.Generator().manual_seed(index)).tolist()
        examples.finish(
            store, concept_id, vectors, embedding_dims={"clip_l": 32}, tags={"description": "a red cat"}
        )
    return store


def test_fingerprints(store: Store) -> None:
    """It covers everything that scores depend on, and nothing else."""
    result = store.result("a")
    assert result is not None
    base = evaluate.plan(store, "quick").fingerprint(result)
    assert evaluate.plan(store, "quick", ["service.workers=5"]).fingerprint(result) == base
    assert evaluate.plan(store, "quick").fingerprint(result.model_copy(update={"seconds": 3.0})) == base
    others = [
        evaluate.plan(store, "paper").fingerprint(result),
        evaluate.plan(store, "quick", ["review.guidance_scale=2"]).fingerprint(result),
        evaluate.plan(store, "quick", ["review.resolution=24"]).fingerprint(result),
        evaluate.plan(store, "quick", ["model.vae_dtype=bfloat16"]).fingerprint(result),
        evaluate.plan(store, "quick", ["scoring.model=x"]).fingerprint(result),
        evaluate.plan(store, "quick", (), "dino").fingerprint(result),
        evaluate.plan(store, "quick").fingerprint(result.model_copy(update={"fingerprint": "new"})),
        evaluate.plan(store, "quick").fingerprint(
            result.model_copy(update={"tags": {"description": "a blue cat"}})
        ),
    ]
    assert len({base, *others}) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "slow"], "no preset 'slow' (known: quick, paper)"),
        (["--only", "aa"], "no concept 'aa'; did you mean 'a'?"),
        (["--set", "review.steps=3"], "review.steps: no such field"),
        (["--dino", "{folder}/none"], "/none is no DINO model that can be loaded: "),
        (["--dino", "{folder}"], " is no DINO model that can be loaded: "),
        (
            ["--dino", "memory://u:pw@none/dino"],
            "error: memory://none/dino can't be copied",
        ),
    ],
)
def test_mistakes(
    store: Store, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    arguments = [argument.format(folder=Path(store.root).parent) for argument in arguments]
    assert textinv("evaluate", store.uri, *arguments) == 2
    assert message in capfd.readouterr().err


def test_an_output_that_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert textinv("evaluate", str(tmp_path)) == 2
    assert "has no job.json; give the output of `textinv invert`" in capfd.readouterr().err


def test_learned_concepts_come_from_the_store(store: Store) -> None:
    concept = evaluate.read_concept(store, "a")
    assert (concept.placeholder_token, concept.description) == ("<a>", "a red cat")
    assert concept.training_images.shape == (3, 8, 8, 3)
    store.remove("concepts/a/training.png")
    with pytest.raises(ValueError, match=r"training\.png is not there"):
        evaluate.read_concept(store, "a")
    store.write_concept("a", "training.png", b"bad")
    with pytest.raises(ValueError, match=r"training\.png can't be read"):
        evaluate.read_concept(store, "a")


def command(*arguments: str) -> tuple[int, str]:
    done = finished(script("evaluate_many", *arguments))
    assert done.stderr == "", "nothing but our lines"
    return done.returncode, done.stdout


def test_an_actor_passes_over_what_is_done(store: Store) -> None:
    """Ray passes a whole block again when another actor died with it."""
    todo = evaluate.plan(store, "quick")
    results = {result.concept_id: result for result in store.results()}
    rows = {concept_id: todo.fingerprint(result) for concept_id, result in results.items()}
    actor = evaluate.EvaluationActor(todo.config.to_dict(), "quick", None, store.uri, todo.identity)
    table = pa.table({"concept_id": list(rows), "fingerprint": list(rows.values())})
    assert actor(table.slice(0, 1))["error"].to_pylist() == [""]
    first = store.read("evaluation/a.json")
    assert actor(table)["error"].to_pylist() == ["", ""]
    assert store.read("evaluation/a.json") == first, "with the time at which it was evaluated"
    assert [found.fingerprint for found in evaluate.evaluations(store)] == list(rows.values())
    changed = pa.table({"concept_id": ["a"], "fingerprint": ["another"]})
    actor(changed)
    assert evaluate.evaluations(store)[0].fingerprint == "another"
    store.write("evaluation/a.json", b"damaged")
    assert [found.concept_id for found in evaluate.evaluations(store)] == ["b"]
    assert actor(changed)["error"].to_pylist() == [""]
    assert [found.concept_id for found in evaluate.evaluations(store)] == ["a", "b"]


@pytest.mark.slow
def test_workers_that_cant_start_end_the_job(store: Store) -> None:
    code, said = command(store.uri, "--set", "scoring.model=/no/such/model", "--no-tracking")
    assert code == 1, said
    assert "the job could not go on: " in said
    assert "the scoring model '/no/such/model' can't be loaded" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_evaluated_once_and_after_a_change(store: Store, empty_database: Path, tmp_path: Path) -> None:
    """Two words, one without its training images; then with them; then nothing is left to do."""
    database = Database(empty_database, tmp_path / "first")
    write_view(store, database)
    picture = store.read_concept("b", "training.png")
    assert picture
    store.remove("concepts/b/training.png")

    def run() -> tuple[int, str]:
        return command(store.uri, "--tracking-uri", database.uri)

    code, said = run()
    assert code == 1, said
    assert "to evaluate: 2, quick (4 images a prompt, 2 steps" in said
    assert "b: its result.json, learned_embeds.safetensors or training.png is not there" in said
    assert "MLflow: 1 of 1 concepts have their scores" in said
    first = store.read("evaluation/a.json")
    assert first

    store.write_concept("b", "training.png", picture)
    code, said = run()
    assert code == 0, said
    assert "to evaluate: 1, quick" in said
    assert store.read("evaluation/a.json") == first
    table = pq.read_table(store.path("evaluation.parquet")).to_pylist()
    assert [row["concept_id"] for row in table] == ["a", "b"]
    scores = json.loads(first)["scores"]
    assert table[0]["clip_text_similarity_description"] == scores["clip_text_similarity_description"]
    logged = database.content()["a"]["metrics"]
    assert logged["quick/clip_image_similarity"][0][1] == scores["clip_image_similarity"]

    before = database.content()
    code, said = run()
    assert code == 0, said
    assert "to evaluate: 0, quick" in said
    assert "Ray" not in said
    assert database.content() == before
