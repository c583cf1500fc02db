"""`textinv evaluate` with real Ray, store and MLflow; nothing is evaluated twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import data_sets, examples, tiny_encoders
from tests.support.commands import finished, script, textinv
from tests.support.mlflow import Database, write_view
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.batch import evaluate
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.concept_runs import ConceptRuns
from textinv_ray.util.errors import UserError
from textinv_ray.util.terminal import PlainConsole


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
        evaluate.plan(store, "quick", (), ["dino=x"]).fingerprint(result),
        evaluate.plan(store, "quick", holdout=1).fingerprint(result),
        evaluate.plan(store, "quick").fingerprint(result.model_copy(update={"fingerprint": "new"})),
        evaluate.plan(store, "quick").fingerprint(
            result.model_copy(update={"tags": {"description": "a blue cat"}})
        ),
    ]
    by_name = evaluate.plan(store, "quick", (), ["clip=x"]).fingerprint(result)
    assert by_name == evaluate.plan(store, "quick", ["scoring.model=x"]).fingerprint(result)
    assert len({base, *others}) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "slow"], "no protocol 'slow' (known: customconcept101, dreambench, "),
        (["--preset", "dreambnech"], "no protocol 'dreambnech'; did you mean 'dreambench'?"),
        (
            ["--protocol", "dreambench"],
            "no word of {shown} is a subject of DreamBench: learn the manifest that ",
        ),
        (
            ["--protocol", "dreambench_plus"],
            "the prompts of DreamBench++ lie with its images: name the data set's ",
        ),
        (["--scorer", "CLIP=x"], "--scorer CLIP=x: write it as NAME=MODEL"),
        (["--only", "aa"], "no concept 'aa'; did you mean 'a'?"),
        (["--set", "review.steps=3"], "review.steps: no such field"),
        (["--dino", "{folder}/none"], "/none is no scoring model that can be loaded: "),
        (["--dino", "{folder}"], " is no scoring model that can be loaded: "),
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
    assert message.format(shown=store.shown) in capfd.readouterr().err


def test_an_output_that_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert textinv("evaluate", str(tmp_path)) == 2
    assert "has no job.json; give the output of `textinv invert`" in capfd.readouterr().err


def test_learned_concepts_come_from_the_store(store: Store) -> None:
    concept = evaluate.read_concept(store, "a")
    assert (concept.placeholder_token, concept.description) == ("<a>", "a red cat")
    assert concept.images.shape == (3, 8, 8, 3)
    store.remove("concepts/a/training.png")
    with pytest.raises(ValueError, match=r"training\.png is not there"):
        evaluate.read_concept(store, "a")
    store.write_concept("a", "training.png", b"bad")
    with pytest.raises(ValueError, match=r"training\.png can't be read"):
        evaluate.read_concept(store, "a")


def test_held_out_images_come_first(store: Store) -> None:
    result = store.result("a")
    assert result is not None
    with pytest.raises(ValueError, match=r"has 0 held-out images, not 1: learn it with --set data.holdout=1"):
        evaluate.read_concept(store, "a", holdout=1)
    store.amend(result.model_copy(update={"heldout_images": 2}))
    store.write_concept("a", "heldout.png", examples.grid(9, columns=2, rows=1))
    assert evaluate.read_concept(store, "a").images.shape == (2, 8, 8, 3)
    assert evaluate.read_concept(store, "a", holdout=1).images.shape == (1, 8, 8, 3)
    assert evaluate.read_concept(store, "a", holdout=0).images.shape == (3, 8, 8, 3), "the training images"


def test_a_protocol_for_styles_alone(store: Store, tmp_path: Path) -> None:
    """Words that it has no prompts for are left out; without any, that is a mistake."""
    path = tmp_path / "styles.yaml"
    path.write_text('like: paper\ntitle: Styles\nprompts: {style: {all: ["a {}"]}}\n')
    todo = evaluate.plan(store, str(path))
    console = PlainConsole(record=True)
    with pytest.raises(UserError, match=r"Styles has no prompts for any word of "):
        evaluate.evaluate(store, todo, console)
    result = store.result("a")
    assert result is not None
    style = result.model_copy(update={"learnable_property": "style"})
    store.amend(style)
    done = {
        "concept_id": "a",
        "protocol": "styles",
        "learnable_property": "style",
        "scores": {"clip_image_similarity": 0.5},
        "evaluated_at": 1.0,
        "fingerprint": todo.fingerprint(style),
    }
    store.write("evaluation/a.json", json.dumps(done).encode())
    assert evaluate.evaluate(store, todo, console) == 0
    assert "left out: 1 words that Styles isn't for" in console.export_text()


SUBJECTS = {"dreambench": 30, "customconcept101": 101, "dreambench_plus": 150}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_protocol_from_the_folders_to_the_table(
    name: str, tmp_path: Path, tiny_sd: Path, tiny_clip: Path, empty_database: Path
) -> None:
    """The data set's manifest, words of some of its subjects, their scores by all encoders, the tables, MLflow."""
    folder, manifest = getattr(data_sets, name)(tmp_path / "data"), tmp_path / "m.parquet"
    assert textinv("manifest", "--protocol", name, str(folder), "-o", str(manifest)) == 0
    rows = list(Manifest.open(str(manifest)).rows())
    assert len(rows) == SUBJECTS[name]
    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    for index, row in enumerate(rows[:10]):
        vectors = torch.randn(1, 32, generator=torch.Generator().manual_seed(index)).tolist()
        changes = {"tags": row["tags"], "learnable_property": row["learnable_property"]}
        examples.finish(store, row["concept_id"], vectors, embedding_dims={"clip_l": 32}, **changes)
    encoders = {
        "clip": tiny_clip,
        "dino": tiny_encoders.save_vit(tmp_path / "dino"),
        "siglip": tiny_encoders.save_siglip(tmp_path / "siglip"),
        "dinov2": tiny_encoders.save_dinov2(tmp_path / "dinov2"),
    }
    scorers = [f"{encoder}={path}" for encoder, path in encoders.items()]
    todo = evaluate.plan(store, name, (), scorers, str(folder))
    shortest = {  # the tiny model reads few tokens
        group: {"all": tuple(sorted(categories["all"], key=len)[:3])}
        for group, categories in todo.definition.prompts.items()
    }
    few = {"images_per_prompt": 1, "num_inference_steps": 2, "prompts": shortest}
    todo = dataclasses.replace(todo, definition=todo.definition.model_copy(update=few))
    actor = evaluate.EvaluationActor(todo.to_dict(), store.uri)
    results = list(store.results())
    wanted = {result.concept_id: todo.fingerprint(result) for result in results}
    errors = actor(pa.table({"concept_id": list(wanted), "fingerprint": list(wanted.values())}))["error"]
    assert errors.to_pylist() == [""] * 10
    console = PlainConsole(record=True)
    assert evaluate.evaluate(store, todo, console) == 0
    said = console.export_text()
    assert f"to evaluate: 0, {name} (1 images a prompt, 2 steps" in said
    assert f"10 of the {SUBJECTS[name]} subjects" in said

    table = pq.read_table(store.path("evaluation.parquet")).to_pandas()
    means = {
        "CLIP-I": "clip_image_similarity",
        "DINO": "dino_similarity",
        "DINOv2": "dinov2_similarity",
        "SigLIP-T": "siglip_text_score" if name == "customconcept101" else "siglip_text_similarity",
        "SigLIP top 1": "siglip_retrieval_top1",
    }
    page = store.read("evaluation.md")
    assert page is not None
    lines = [line.strip("| ").split(" | ") for line in page.decode().splitlines() if line.startswith("|")]
    heads = lines[0]
    (ours,) = (line for line in lines if line[0] == "this output")
    for head, score in means.items():
        (column,) = (
            place for place, text in enumerate(heads, 1) if text.startswith(head + " (") or text == head
        )
        mean = table[score].mean()
        assert ours[column].startswith(f"{mean:.3f} ["), head
    methods = [line[0].partition(" (")[0] for line in lines[2:]]
    published = [row.method.partition(" (")[0] for row in todo.definition.published]
    assert methods[: len(published)] == published
    latex = store.read("evaluation.tex")
    assert latex is not None
    assert latex.decode().count(r" \\") == len(lines) - 1

    if name != "dreambench":
        return
    database = Database(empty_database, tmp_path / "first")
    write_view(store, database)
    evaluate.log(store, todo, ConceptRuns(store, database.uri, todo.config.tracking.experiment), console)
    assert "MLflow: 10 of 10 concepts have their scores" in console.export_text()
    jobs_own = database.content()["out"]
    assert {"evaluation.md", "evaluation.tex"} <= set(jobs_own["files"])
    mean = jobs_own["metrics"]["dreambench/dino_similarity"][0][1]
    assert mean == pytest.approx(table["dino_similarity"].mean())
    assert "dreambench/dino_similarity_low" in jobs_own["metrics"]


def command(*arguments: str) -> tuple[int, str]:
    done = finished(script("evaluate_many", *arguments))
    assert done.stderr == "", "nothing but our lines"
    return done.returncode, done.stdout


def test_an_actor_passes_over_what_is_done(store: Store) -> None:
    """Ray passes a whole block again when another actor died with it."""
    todo = evaluate.plan(store, "quick")
    results = {result.concept_id: result for result in store.results()}
    rows = {concept_id: todo.fingerprint(result) for concept_id, result in results.items()}
    actor = evaluate.EvaluationActor(todo.to_dict(), store.uri)
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
