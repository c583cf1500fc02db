"""The configuration: strict, with messages that help."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from textinv_ray.config.job import JobConfig
from textinv_ray.config.model_families import STABLE_DIFFUSION_XL
from textinv_ray.config.presets import preset_names
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact, redact_text

PRESETS = [
    "bias",
    "flux",
    "klein",
    "mini",
    "mini-sdxl",
    "paper",
    "quick",
    "sana",
    "sd15",
    "sd21",
    "sd35",
    "sdxl",
    "sdxl-fast",
]


def test_presets_are_known_and_load() -> None:
    assert preset_names() == PRESETS
    for name in PRESETS:
        config = JobConfig.load(name)
        assert JobConfig.from_dict(config.to_dict()) == config


def test_without_a_name_it_is_the_bundled_model() -> None:
    assert JobConfig.load() == JobConfig.load("mini")
    assert JobConfig.load().model.path == "mini-sd"


def test_the_papers_settings() -> None:
    config = JobConfig.load("paper")
    assert (config.training.steps, config.training.learning_rate, config.data.flip_probability) == (
        5000,
        0.04,
        0.5,
    )
    assert (config.scoring.num_images, config.review.sampler, config.review.num_inference_steps) == (
        64,
        "ddim",
        50,
    )


def test_sdxls_presets_are_their_sources() -> None:
    """invoke-training's sample for words of SDXL; the command in diffusers' README_sdxl.md."""
    base, fast = JobConfig.load("sdxl"), JobConfig.load("sdxl-fast")
    for config, side, steps, batch_size, vectors in ((base, None, 2000, 1, 4), (fast, 768, 500, 4, 1)):
        training = config.training
        assert (config.data.resolution, training.steps, training.batch_size) == (side, steps, batch_size)
        assert (training.learning_rate, training.num_vectors) == (2e-3, vectors)
        assert config.model.path == "stabilityai/stable-diffusion-xl-base-1.0"
        assert config.pack.size == "auto"
        STABLE_DIFFUSION_XL.check(config)
    assert (base.training.lr_schedule, base.training.lr_warmup_steps) == ("cosine", 200)
    assert fast.training.lr_schedule == "constant"


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = JobConfig.load("sd15", ["training.steps=7", "service.workers=3"])
    path = tmp_path / "mine.yaml"
    path.write_text(config.to_yaml())
    assert JobConfig.load(str(path)) == config


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("training.steps=500", "training", "steps", 500),
        ("training.learning_rate=5e-4", "training", "learning_rate", 5e-4),
        ("training.learning_rate=1", "training", "learning_rate", 1.0),
        ("training.max_grad_norm=null", "training", "max_grad_norm", None),
        ("pack.size=auto", "pack", "size", "auto"),
        ("review.sample_at=[0, 1]", "review", "sample_at", (0.0, 1.0)),
        ("tracking.enabled=false", "tracking", "enabled", False),
        ("model.path=s3://b/a=b", "model", "path", "s3://b/a=b"),
    ],
)
def test_overrides(override: str, section: str, field: str, value: object) -> None:
    assert getattr(getattr(JobConfig.load("mini", [override]), section), field) == value


def test_one_of_a_pair_of_prompts_may_be_given() -> None:
    prompts = JobConfig.load("mini", ["review.prompts.style=['{} at night']"]).review.prompts
    assert prompts.of("style") == ("{} at night",)
    assert prompts.of("object") == JobConfig.load("mini").review.prompts.of("object")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.step=5", r"training.step: no such field; did you mean 'steps'\? \(known: steps, "),
        ("trainin.steps=5", r"trainin: no such section; did you mean 'training'\?"),
        (
            "training.norm_control=off",
            r"training.norm_control: input should be 'none', 'rescale' or 'regularize'",
        ),
        ("training.per_image_probability=2", r"training.per_image_probability: input should be less than"),
        (
            "training.init_from=atuo",
            r"training.init_from: 'atuo' is none of auto, .*, nor a .safetensors file",
        ),
        ("training.vectors_added_at=[0]", r"training.vectors_added_at.0: input should be greater than"),
        ("training.templates=['a photo']", r"training.templates.0: must contain {} where the word goes"),
        (
            "stopping.rule=loss",
            r"stopping.rule: input should be 'none', 'dvar' or 'clip', not 'loss'",
        ),
        ("stopping.dvar.window=1", r"stopping.dvar.window: input should be greater than or equal to 2"),
        ("stopping.patience=2", r"stopping.patience: no such field"),
        ("training.steps=-1", r"training.steps: input should be greater than or equal to 0, not -1"),
        ("training.steps=many", r"training.steps: input should be a valid integer.*not 'many'"),
        ("training.steps=true", r"training.steps: input should be a valid integer, not True"),
        ("training.steps=1.5", r"training.steps: .*not 1.5"),
        ("training.learning_rate=.nan", r"training.learning_rate: "),
        (
            "training.lr_schedule=cosin",
            r"training.lr_schedule: input should be 'constant', 'linear' or 'cosine'",
        ),
        ("data.resolution=100", r"data.resolution: input should be a multiple of 8, not 100"),
        (
            "review.prompts.object=['a cat']",
            r"review.prompts.object.0: must contain \{\} where the word goes",
        ),
        ("service.workers=0", r"service.workers: input should be greater than or equal to 1, not 0"),
        ("service.lease_timeout_s=1", r"service: lease_timeout_s must be at least twice heartbeat_s"),
        ("training=5", r"write it as section.field=value"),
        ("training.steps", r"write it as section.field=value"),
        ("training.steps.x=1", r"--set 'training.steps.x=1': 'steps' has no fields of its own"),
        ("training.steps=[", r"is not valid YAML"),
    ],
)
def test_a_wrong_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        JobConfig.load("mini", [override])


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as error:
        JobConfig.load("mini", ["training.steps=-1", "model.dtype=int8", "pack.sizes=3"])
    lines = str(error.value).splitlines()
    assert lines[0].startswith("configuration 'mini' with --set:")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "sd115",
            r"no configuration 'sd115'; did you mean 'sd15'\? \(presets: bias, flux, klein, mini, .*; or",
        ),
        ("no/such.yaml", r"configuration file 'no/such.yaml' doesn't exist"),
    ],
)
def test_a_wrong_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        JobConfig.load(name)


@pytest.mark.parametrize(("text", "message"), [("- 1", "expected sections"), ("a: [", "not valid YAML")])
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        JobConfig.load(str(path))


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# nothing\n")
    assert JobConfig.load(str(path)) == JobConfig()


def test_every_field_is_documented() -> None:
    def undocumented(model: type[BaseModel], path: str = "") -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                assert inner.__doc__
                missing += undocumented(inner, f"{path}{name}.")
            elif not field.description:
                missing.append(path + name)
        return missing

    assert undocumented(JobConfig) == []


@pytest.mark.parametrize(
    "override",
    ["service.workers=3", "pack.size=7", "tracking.uri=x", "model.device=cpu", "data.download_timeout_s=1"],
)
def test_the_digest_ignores_where_and_how_fast(override: str) -> None:
    assert JobConfig.load("mini", [override]).result_inputs() == JobConfig.load("mini").result_inputs()


@pytest.mark.parametrize(
    "override", ["training.seed=3", "data.flip_probability=0", "model.dtype=float16", "scoring.num_images=3"]
)
def test_the_digest_knows_what_matters(override: str) -> None:
    assert JobConfig.load("mini", [override]).result_inputs() != JobConfig.load("mini").result_inputs()


def test_printed_configuration_has_no_credentials() -> None:
    config = JobConfig.load(
        "mini",
        [
            "tracking.uri=https://me:SECRET@mlflow.example/x?token=SECRET",
            "service.output=s3://key:SECRET@bucket/out",
            "model.path=https://h/model?sig=SECRET",
        ],
    )
    assert "SECRET" not in config.to_yaml()
    assert "s3://bucket/out" in config.to_yaml()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("a/b.png", "a/b.png"),
        ("/a@b/c?d.png", "/a@b/c?d.png"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("s3://bucket/a#1.png", "s3://bucket/a#1.png"),
        ("https://u:p@host:80/x.png?X-Amz-Signature=1#f", "https://host:80/x.png"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("simplecache::s3://key:secret@bucket/x", "simplecache::s3://bucket/x"),
        ("http://[bad/?q=secret", "http://[bad/"),
    ],
)
def test_shown_uris(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert redact_text(f"no {uri!r} today") == f"no {shown!r} today"


def test_templates_from_a_file(tmp_path: Path) -> None:
    """As MMagic's and diffusers' users have them: one per line."""
    path = tmp_path / "imagenet_templates_small.txt"
    path.write_text("a photo of a {}\n\na rendering of a {}  \r\n", encoding="utf-8-sig")
    config = JobConfig.load("mini", [f"training.templates={path}"])
    assert config.training.templates == ("a photo of a {}", "a rendering of a {}")
    assert JobConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"templates file '.*t.txt' can't be read: No such file"),
        (b"a {}\na photo\n", r"templates file '.*t.txt', line 2: 'a photo' must contain {} for the word"),
        (b"\n \n", r"templates file '.*t.txt' has no templates; write one per line"),
        (b"\xff\xfe{}", r"templates file '.*t.txt' can't be read: it isn't UTF-8 text"),
    ],
)
def test_templates_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        JobConfig.load("mini", [f"training.templates={path}"])


def test_the_recipe_against_bias() -> None:
    """A new word in place of an existing one, kept near it."""
    training = JobConfig.load("bias").training
    assert training.initializer_token is None
    assert training.init_from is None
    assert training.regularization_weight > 0


@pytest.mark.parametrize(
    "override",
    [
        "https://u:SECRET@h/x",
        "training.init_from.x=https://u:SECRET@h/x.safetensors?sig=SECRET",
        "training.init_from=[https://u:SECRET@h/x",
        "training.init_from=https://u:SECRET@h/x?sig=SECRET",
        "training.init_from=x.pt?sig=SECRET",
        "training.steps=https://u:SECRET@h/x?sig=SECRET",
        "training.steps=" + "x" * 100_000,
        "training.steps=[" + "'x', " * 100_000 + "]",
        "x" * 100_000 + "=1",
    ],
)
def test_errors_of_overrides_are_short_and_without_credentials(override: str) -> None:
    with pytest.raises(UserError) as error:
        JobConfig.load("mini", [override])
    assert "SECRET" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PAR1" + bytes(99), "c.yaml: this is a Parquet file and not YAML"),
        (b"training: {steps: 5} # caf\xe9", "c.yaml: isn't UTF-8 text"),
        (b"training: &a [*a]", "c.yaml is not valid YAML: an alias stands within what it stands for"),
        (b"training: {steps: 1, steps: 2}", "c.yaml is not valid YAML: 'steps' is there twice"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(data)
    with pytest.raises(UserError, match=message):
        JobConfig.load(str(tmp_path / "c.yaml"))


SECRET = "https://u:P'W@h/x.safetensors?sig=S"


def test_no_text_of_a_stored_configuration_has_credentials() -> None:
    config = JobConfig.load("mini", [f"training.init_from={SECRET}", f"model.path={SECRET}"])
    text = config.to_yaml()
    assert "P'W" not in text
    assert "sig=" not in text
    assert text.count("https://h/x.safetensors") == 2
