"""What holds for the tests themselves."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
TESTED_IN = {
    "cli/options": "cli/test_jobs",
    "cli/predictor": "service/library/test_predicting",
    "cli/review": "service/reviewing/test_serve",
    "cli/studies": "experiments/test_ablation",
    "cli/words": "service/library/test_export",
    "concepts/settings": "concepts/test_fingerprints",
    "config/machine": "cli/test_jobs",
    "config/model": "config/test_job",
    "config/service": "config/test_job",
    "config/templates": "concepts/test_templates",
    "config/training": "config/test_job",
    "inversion/cached_latents": "inversion/test_task",
    "inversion/dino": "inversion/test_encoder_loading",
    "inversion/draws": "inversion/test_task",
    "inversion/encoders": "inversion/test_encoder_loading",
    "inversion/families/condition": "inversion/families/test_compiled",
    "inversion/initialization": "inversion/test_variants",
    "inversion/adam": "inversion/test_pack_update",
    "inversion/penalties": "inversion/test_variants",
    "inversion/prompt_ids": "inversion/test_task",
    "inversion/siglip": "inversion/test_encoder_loading",
    "manifest/batch": "manifest/test_row_checks",
    "manifest/concept_settings": "manifest/test_build",
    "manifest/duplicates": "manifest/test_checks",
    "manifest/image_columns": "manifest/test_columns",
    "manifest/kinds": "manifest/test_columns",
    "manifest/problem": "manifest/test_checks",
    "service/batch/actor_pool": "service/batch/test_generate",
    "service/batch/evaluation_tables": "service/batch/test_evaluate",
    "service/driver/end": "service/driver/test_run",
    "service/driver/job": "service/driver/test_run",
    "service/reviewing/access": "service/reviewing/test_server",
    "service/reviewing/gallery": "service/reviewing/test_server",
    "service/scheduling/actor": "service/scheduling/test_scheduler",
    "service/scheduling/client": "service/worker/test_worker",
    "service/scheduling/protocol": "service/scheduling/test_scheduler",
    "service/store/holder": "service/driver/test_lock",
    "service/scheduling/report": "service/cluster/test_connection",
    "service/scheduling/stored": "service/scheduling/test_scheduler",
    "service/store/files": "service/store/test_store",
    "service/store/job": "service/driver/test_job_record",
    "service/store/keys": "service/intake/test_plan",
    "service/store/snapshot": "service/views/test_results_table",
    "service/tracking/decision_tags": "service/reviewing/test_mlflow_tags",
    "service/tracking/look_writer": "service/tracking/test_mirror",
    "service/tracking/registry": "service/library/test_register",
    "service/tracking/shown": "service/tracking/test_mirror",
    "service/tracking/texts": "service/tracking/test_mirror",
    "service/views/columns": "service/views/test_results_table",
    "service/views/thumbnails": "service/views/test_report",
    "util/errors": "cli/test_jobs",
    "util/files": "concepts/test_fetch",
    "util/quiet": "service/driver/test_environment",
    "util/submitted_job": "service/cluster/test_ray_internals",
}
"""Modules that are tested through another one; a folder in `TESTED_WHOLE` is tested as one."""
TESTED_WHOLE = {"service/worker": "service/worker/test_worker"}
BY_THEME = {
    "inversion/test_best_word": "the best evaluation of a word, from the score to the review",
    "inversion/test_notebook": "the documented code",
    "inversion/test_on_a_device": "the packed step on a device without values",
    "inversion/test_on_a_gpu": "the packed step on a GPU",
    "inversion/test_pack_update": "the optimizer within the pack",
    "inversion/test_stopping_rules": "the rules alone",
    "inversion/test_stopping_states": "the rules and saved states",
    "inversion/test_variants": "variants of the paper's method, across the modules",
    "service/reviewing/test_page": "the review page in a browser",
    "service/views/test_report_page": "report.html in a browser",
    "concepts/test_bad_word_files": "files of words that are pickles, damaged, or something else",
    "concepts/test_starts": "what learning starts from",
    "manifest/test_any_manifest": "manifests of any form, from the check to the concept",
    "service/cluster/test_autoscaling": "a job on Ray's autoscaler",
    "service/driver/test_read_once": "results are read once",
    "service/scheduling/test_machine": "the scheduler under restarts and lost messages",
    "service/scheduling/test_news": "what waiting workers hear",
    "service/library/test_damaged_outputs": "the commands on outputs with damaged files",
    "service/store/test_s3": "the store on S3",
    "service/worker/test_damage": "a worker on damaged files",
    "service/worker/test_lost_workers": "workers that are lost or fall silent",
    "service/worker/test_memory": "a worker whose device is full",
    "service/worker/test_stopping_rules": "stopping rules in a worker",
}
"""Test files that no single module of the package stands behind."""
ELSEWHERE = {"benchmarks", "docs", "system", "training"}
"""Folders of tests/ that are not of the package."""


def imported(module: Path) -> set[str]:
    """Dotted names of the modules that a file imports, and of what it imports from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_test_module_is_imported() -> None:
    """What tests share lies in tests/support."""
    modules = [path for folder in ("tests", "benchmarks") for path in (TESTS.parent / folder).rglob("*.py")]
    names = {path: imported(path) for path in modules}
    assert "tests.support.waiting.wait_for" in set().union(*names.values()), "imports are found"
    of_tests = {
        str(path.relative_to(TESTS.parent)): name
        for path, found in names.items()
        for name in found
        if any(part.startswith("test_") for part in name.split("."))
    }
    assert of_tests == {}


def test_tests_mirror_the_package() -> None:
    package = TESTS.parent / "textinv_ray"
    modules = {
        str(path.relative_to(package).with_suffix(""))
        for path in package.rglob("*.py")
        if not path.name.startswith("__")
    }
    tests = {
        str(path.relative_to(TESTS).with_suffix(""))
        for path in TESTS.rglob("test_*.py")
        if path.parent != TESTS and path.relative_to(TESTS).parts[0] not in ELSEWHERE
    }
    mirrors = {module: module.rpartition("/")[0] + "/test_" + module.rpartition("/")[2] for module in modules}
    without = {
        module
        for module, mirror in mirrors.items()
        if mirror not in tests and module not in TESTED_IN and module.rpartition("/")[0] not in TESTED_WHOLE
    }
    assert without == set(), "add their tests, or say above where they are tested"
    assert tests - set(mirrors.values()) == set(BY_THEME), "say above what they are about"
    assert set(TESTED_IN) <= modules - {module for module, mirror in mirrors.items() if mirror in tests}
    assert {*TESTED_IN.values(), *TESTED_WHOLE.values()} <= tests
