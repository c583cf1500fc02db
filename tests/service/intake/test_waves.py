"""Which concepts are learned first, and what the others start from; without Ray or a model."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import catalogue, examples
from textinv_ray.concepts import predictor, prepare
from textinv_ray.concepts.predicted_start import PredictedStart
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake import plan, waves
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.intake.waves import Waves
from textinv_ray.service.models import sources
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError

COUNT, FIRST = 14, 10


@pytest.fixture
def config(tiny_sd: Path, tiny_clip: Path) -> JobConfig:
    return examples.config(
        tiny_sd, tiny_clip, f"service.waves.first={FIRST}", "training.initializer_token=cat"
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """c13 starts from the vocabulary's mean."""
    path = examples.write_manifest(
        tmp_path / "data", COUNT, {"c13": {"initializer_token": None, "init_from": "vocabulary_mean"}}
    )
    return Manifest.open(str(path))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def read(store: Store, manifest: Manifest, config: JobConfig) -> Waves:
    found = waves.read(store, manifest, config, sources.facts(config.model))
    assert found is not None
    return found


def planned(store: Store, manifest: Manifest, config: JobConfig, **selection: object) -> Plan:
    facts = sources.facts(config.model)
    found = waves.read(store, manifest, config, facts)
    return plan.make(manifest, config, facts, StoredResults.read(store), waves=found, **selection)  # type: ignore[arg-type]


def start(config: JobConfig, seed: int = 0) -> PredictedStart:
    """A predictor of words of one vector, for the job's models."""
    fitted = predictor.fit(
        catalogue.examples(
            12, scorer=config.scoring.model, model=sources.facts(config.model).identity, first=seed
        )
    )
    return PredictedStart(fitted.to_bytes())


def decide(store: Store, manifest: Manifest, config: JobConfig, found: PredictedStart | None) -> None:
    undecided = waves.Waves(read(store, manifest, config).key, waves.first_part(manifest, config))
    waves.write(store, Waves(undecided.key, undecided.first, True, found), 10, "" if found else "too few")


def test_the_first_part_depends_on_seed_and_ids_alone(manifest: Manifest, config: JobConfig) -> None:
    first = waves.first_part(manifest, config)
    assert len(first) == FIRST
    assert "c13" not in first, "it has a start of its own"
    path = manifest.parts[0].uri
    table = pq.read_table(path)
    backwards = table.take(list(range(COUNT))[::-1]).set_column(
        table.schema.get_field_index("steps"), "steps", pa.array([3] * COUNT, pa.int64())
    )
    pq.write_table(backwards, path)
    assert waves.first_part(Manifest.open(path), config) == first
    assert waves.first_part(Manifest.open(path), config.override(["training.seed=1"])) != first
    pq.write_table(table.slice(0, 5), path)
    assert waves.first_part(Manifest.open(path), config) == {f"c{index}" for index in range(5)}


def test_first_the_first_part_then_the_rest(manifest: Manifest, config: JobConfig, store: Store) -> None:
    first = waves.first_part(manifest, config)
    found = planned(store, manifest, config)
    assert set(found.todo) == first | {"c13"}
    assert found.later == {f"c{index}" for index in range(13)} - first
    assert found.steps == 6 * (FIRST + 1)
    assert (found.later_steps, found.later_samples) == (6 * len(found.later), 12 * len(found.later))
    shorter = planned(store, manifest, config.override(["training.warm_start.steps=2"]))
    assert (shorter.steps, shorter.later_steps) == (found.steps, 2 * len(found.later))
    plain = plan.make(manifest, config, sources.facts(config.model), StoredResults())
    assert found.todo == {name: plain.todo[name] for name in found.todo}, "they are learned as without waves"
    assert found.digest == plain.digest
    decide(store, manifest, config, start(config))
    second = planned(store, manifest, config)
    assert not second.later
    differ = {name for name, key in second.todo.items() if key != plain.todo[name]}
    assert differ == found.later


def test_the_key_is_what_the_preparation_makes(manifest: Manifest, config: JobConfig, store: Store) -> None:
    decide(store, manifest, config, start(config))
    found, facts = read(store, manifest, config), sources.facts(config.model)
    todo = planned(store, manifest, config).todo
    for row in manifest.rows():
        concept = prepare.make(
            row,
            config,
            base=manifest.base,
            resolution=facts.resolution,
            model_identity=facts.identity,
            given=found.start_of(row, config),
        )
        assert concept.row_fingerprint == todo[row["concept_id"]].row_fingerprint
        assert (concept.predictor is not None) == (row["concept_id"] not in found.first | {"c13"})
        assert concept.num_vectors == 1


def test_another_predictor_is_another_result(manifest: Manifest, config: JobConfig, store: Store) -> None:
    keys: list[dict[str, Key]] = []
    for seed in (0, 100, 0):
        decide(store, manifest, config, start(config, seed))
        keys.append(planned(store, manifest, config).todo)
    first = waves.first_part(manifest, config) | {"c13"}
    assert keys[0] == keys[2]
    assert {name for name in keys[0] if keys[0][name] == keys[1][name]} == first


def test_words_that_were_learned_plainly_stay(manifest: Manifest, config: JobConfig, store: Store) -> None:
    """Whether they are of the first part or not; and those from a predictor are done with that one alone."""
    plain = plan.make(manifest, config, sources.facts(config.model), StoredResults()).todo
    first = waves.first_part(manifest, config)
    one, *_, other = sorted(first)
    later, predicted = sorted({f"c{index}" for index in range(13)} - first)[:2]
    for name in (one, other, later):
        examples.finish(store, name, **plain[name]._asdict())
    assert planned(store, manifest, config).done == {one, other, later}
    decide(store, manifest, config, start(config))
    key = planned(store, manifest, config).todo[predicted]
    examples.finish(store, predicted, **key._asdict())
    assert planned(store, manifest, config).done == {one, other, later, predicted}
    without = plan.make(manifest, config, sources.facts(config.model), StoredResults.read(store))
    assert without.done == {one, other, later}


def test_without_a_predictor_all_is_learned_plainly(
    manifest: Manifest, config: JobConfig, store: Store
) -> None:
    decide(store, manifest, config, None)
    plain = plan.make(manifest, config, sources.facts(config.model), StoredResults())
    assert planned(store, manifest, config).todo == plain.todo


def test_rows_that_come_later_start_from_the_same_predictor(
    tmp_path: Path, manifest: Manifest, config: JobConfig, store: Store
) -> None:
    decide(store, manifest, config, start(config))
    before = planned(store, manifest, config).todo
    longer = Manifest.open(str(examples.write_manifest(tmp_path / "data", COUNT + 30)))
    after = planned(store, longer, config)
    assert not after.later
    assert {name: key.row_fingerprint for name, key in before.items() if name != "c13"} == {
        name: after.todo[name].row_fingerprint for name in before if name != "c13"
    }
    assert read(store, longer, config).first == read(store, manifest, config).first


@pytest.mark.parametrize("override", ["service.waves.first=11", "training.learning_rate=0.1"])
def test_other_settings_fit_anew(manifest: Manifest, config: JobConfig, store: Store, override: str) -> None:
    decide(store, manifest, config, start(config))
    assert not planned(store, manifest, config).later
    assert planned(store, manifest, config.override([override])).later
    assert not planned(store, manifest, config.override(["service.workers=7"])).later


@pytest.mark.parametrize("damage", [b"damaged", None])
def test_a_predictor_that_is_gone_is_fitted_again(
    manifest: Manifest, config: JobConfig, store: Store, damage: bytes | None
) -> None:
    found = start(config)
    decide(store, manifest, config, found)
    if damage is None:
        store.remove(found.name)
    else:
        store.write(found.name, damage)
    assert planned(store, manifest, config).later
    store.write(found.name, found.data)
    assert not planned(store, manifest, config).later


def test_words_of_other_sizes_are_learned_plainly(tmp_path: Path, config: JobConfig, store: Store) -> None:
    path = examples.write_manifest(tmp_path / "data", COUNT)
    two = [2 if index in (11, 12) else None for index in range(COUNT)]
    pq.write_table(pq.read_table(path).append_column("num_vectors", pa.array(two, pa.int64())), path)
    manifest = Manifest.open(str(path))
    decide(store, manifest, config, start(config))
    found = read(store, manifest, config)
    predicted = {row["concept_id"] for row in manifest.rows() if found.start_of(row, config)}
    assert predicted == {f"c{index}" for index in range(COUNT) if index not in (11, 12)} - found.first


def test_a_selection_needs_the_whole_first_part(manifest: Manifest, config: JobConfig, store: Store) -> None:
    first = sorted(waves.first_part(manifest, config))
    later = sorted(planned(store, manifest, config).later)
    assert set(planned(store, manifest, config, only=first[:2]).todo) == set(first[:2])
    with pytest.raises(UserError, match=r"on 10 concepts of the whole manifest.*leaves out 9 of them"):
        planned(store, manifest, config, only=[first[0], later[0]])
    decide(store, manifest, config, start(config))
    assert set(planned(store, manifest, config, only=[later[0]]).todo) == {later[0]}


def test_a_job_without_waves(manifest: Manifest, store: Store, config: JobConfig) -> None:
    off = config.override(["service.waves.first=null"])
    assert waves.read(store, manifest, off, sources.facts(off.model)) is None
