"""The import names of recipes lead to Harmonia's own classes, under every path that recipes use."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import harmonia.client
import harmonia.errors
import harmonia.trainers

COMPAT = Path(__file__).parents[3] / "compat"
MODULES = sorted(
    ".".join(path.relative_to(COMPAT).with_suffix("").parts).removesuffix(".__init__") for path in COMPAT.rglob("*.py")
)
RUNTIME = """ControlPlaneJobNotifier ControlPlaneStageNotifier DatasetMetricSample DatasetPreferenceSample
    DatasetPromptSample DatasetSample AdaptiveDatasetKind InputConfig JobNotifier PendingArtifact RecipeConfig
    RecipeConfigCli RecipeContext RecipeContextManager SampleMetadata SimpleProgressNotifier StageNotifier
    StdoutJobNotifier StdoutStageNotifier TurnTuple recipe_main"""
CONTEXT = "CheckpointArtifactMetadata RecipeConfig RecipeConfigCli RecipeContext RecipeContextManager"
DATA = """AdaptiveDatasetKind AdaptiveGrader CustomJudge CustomJudgeExample FunctionGrader InputConfig PrebuiltConfigKey
    PrebuiltJudge RemoteRewardEndpoint"""
RUNNER = "RunnerArgs main _get_params _install_recipe_dependencies _load_and_run_recipe _parse_script_metadata"
THREADS = "StringThread StringTurn TokenizedThread Tool Grade EvalSample EvalSampleInteraction"
MODELS = "HarmonyClient InferenceModel ModelBuilder TrainingModel get_client"
CALLBACKS = """CheckpointCallback GenerateSamplesCallback GraderEvalCallback RecipeCallback ValidationLossCallback"""
KINDS = "Completion DatasetKind Metric Preference Prompt"
NAMES = {
    "harmony_client": f"{THREADS} {MODELS} EvaluationArtifactBase parameters runtime harmony_client",
    "harmony_client.harmony_client": f"{MODELS} DEFAULT_MAX_DRAFT_STEPS HarmonyError StringThread Timings utils",
    "harmony_client.artifacts": """ArtifactProcessingMode BaseArtifact CustomArtifact DatasetArtifact DatasetSampleType
        EvaluationArtifact ModelArtifact""",
    "harmony_client.artifacts.base": "ArtifactProcessingMode BaseArtifact",
    "harmony_client.artifacts.custom_artifact": "CustomArtifact",
    "harmony_client.artifacts.dataset_artifact": "DatasetArtifact",
    "harmony_client.artifacts.evaluation_artifact": "EvaluationArtifact",
    "harmony_client.artifacts.model_artifact": "ModelArtifact",
    "harmony_client.internal": "_extract_model_key _save_detailed_eval_table stringify_thread",
    "harmony_client.logging_table": "Table",
    "harmony_client.parameters": "Dataset Grader Model dataset_kinds model_kinds",
    "harmony_client.parameters.dataset_kinds": f"{KINDS} DatasetSample DtoBaseModel",
    "harmony_client.parameters.model_kinds": "Inferable ModelKind Trainable",
    "harmony_client.runtime": RUNTIME,
    "harmony_client.runtime.context": CONTEXT,
    "harmony_client.runtime.data": DATA,
    "harmony_client.runtime.decorators": "recipe_main",
    "harmony_client.runtime.dto.AdaptiveDataset": "AdaptiveDatasetKind",
    "harmony_client.runtime.dto.AdaptiveGrader": "AdaptiveGrader Custom Function Judge JudgeExample Prebuilt Remote",
    "harmony_client.runtime.dto.DatasetSampleFormats": "DatasetSample SampleMetadata TurnTuple",
    "harmony_client.runtime.dto.base": "DtoBaseModel",
    "harmony_client.runtime.job_notifiers": "JobNotifier PendingArtifact StageNotifier StdoutJobNotifier",
    "harmony_client.runtime.job_notifiers.concorde_notifier": "ControlPlaneJobNotifier ControlPlaneStageNotifier",
    "harmony_client.runtime.job_notifiers.stdout_notifier": "StdoutJobNotifier StdoutStageNotifier",
    "harmony_client.runtime.model_artifact_save": "save_with_artifact",
    "harmony_client.runtime.runner": f"{RUNNER} INSTALL_TIMEOUT_SECS _async_main _download_recipe_from_concorde",
    "harmony_client.runtime.simple_notifier": "SimpleProgressNotifier",
    "harmony_client.utils": "uuid_v7",
    "adaptive_harmony": f"""{THREADS} {MODELS} CombinedSchedule CosineScheduler CosineSchedulerWithoutWarmup
        CustomArtifact DataSet DatasetArtifact EvaluationArtifact JobNotifier Logger Scheduler WandbLogger""",
    "adaptive_harmony.artifacts": "CustomArtifact DatasetArtifact EvaluationArtifact ModelArtifact",
    "adaptive_harmony.common": f"{CALLBACKS} DPO RewardModelling SFT",
    "adaptive_harmony.common.callbacks": f"{CALLBACKS} invoke_callbacks",
    "adaptive_harmony.common.checkpointing": "BaseCheckpointData CheckpointManager SFTCheckpointData StageCheckpoint",
    "adaptive_harmony.common.dpo": "DPO",
    "adaptive_harmony.common.rm": "RewardModelling",
    "adaptive_harmony.common.sft": "SFT",
    "adaptive_harmony.core.dataset": "DataSet",
    "adaptive_harmony.core.losses": "grpo_loss train_dpo_tangents train_grpo_tangents train_sft_tangents",
    "adaptive_harmony.core.reasoning": "remove_reasoning",
    "adaptive_harmony.core.schedulers": "CombinedSchedule CosineScheduler CosineSchedulerWithoutWarmup",
    "adaptive_harmony.core.structured_output": """JsonParseError OutputParserException generate_and_validate
        get_pydantic_schema pydantic_parse render_pydantic_model render_schema""",
    "adaptive_harmony.core.utils": """async_map async_map_batch async_map_fallible get_minibatches hash_dataset
        hash_hyperparams log_args sample_data stringify_thread weighted_mean""",
    "adaptive_harmony.evaluation": "EvaluationArtifact",
    "adaptive_harmony.graders": "BaseGrader Grade IgnoreGradeException",
    "adaptive_harmony.graders.base_grader": "BaseGrader",
    "adaptive_harmony.graders.combined_grader": "CombinedGrader",
    "adaptive_harmony.graders.exceptions": "IgnoreGradeException",
    "adaptive_harmony.logging_table": "Table",
    "adaptive_harmony.metric_logger": """CompositeLogger Logger MLFlowLogger StdoutLogger TBMetricsLogger WandbLogger
        get_prod_logger""",
    "adaptive_harmony.parameters": "Dataset Grader Model dataset_kinds model_kinds",
    "adaptive_harmony.runtime": RUNTIME,
    "adaptive_harmony.runtime.context": CONTEXT,
    "adaptive_harmony.runtime.data": DATA,
    "adaptive_harmony.runtime.decorators": "recipe_main",
    "adaptive_harmony.runtime.model_artifact_save": "save_with_artifact",
    "adaptive_harmony.runtime.runner": RUNNER,
    "adaptive_harmony.runtime.simple_notifier": "SimpleProgressNotifier",
}
"""Module -> names. Those of reinforcement learning, judges and the control plane join with what they stand for."""


@pytest.mark.parametrize("module", NAMES)
def test_names_are_there(module: str) -> None:
    offered = importlib.import_module(module)
    missing = [name for name in NAMES[module].split() if not hasattr(offered, name)]
    assert not missing


@pytest.mark.parametrize("module", MODULES)
def test_a_star_import_gives_what_is_offered(module: str) -> None:
    offered = importlib.import_module(module)
    assert [name for name in getattr(offered, "__all__", []) if not hasattr(offered, name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_hold_imports_and_nothing_else(module: str) -> None:
    offered = importlib.import_module(module)
    assert offered.__file__
    body = ast.parse(Path(offered.__file__).read_text(encoding="utf-8")).body
    code = [ast.unparse(node) for node in body if not is_plain(node)]
    assert code in ([], ["if __name__ == '__main__':\n    main()"])


def is_plain(node: ast.stmt) -> bool:
    """A docstring, an import, or the list of names."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.ImportFrom() | ast.Import():
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


@pytest.mark.parametrize("module", MODULES)
def test_everything_is_harmonias_own(module: str) -> None:
    offered = importlib.import_module(module)
    things = {name: getattr(offered, name) for name in getattr(offered, "__all__", [])}
    foreign = {
        name: home
        for name, thing in things.items()
        if isinstance(home := getattr(thing, "__module__", "harmonia"), str)
        and not isinstance(thing, ModuleType)
        and not home.startswith(("harmonia", "typing", "types", "collections"))
    }
    assert not foreign


def test_the_same_class_under_every_name() -> None:
    import adaptive_harmony
    import harmony_client
    from adaptive_harmony.common.sft import SFT

    assert adaptive_harmony.StringThread is harmony_client.StringThread is harmonia.client.StringThread
    assert SFT is harmonia.trainers.SFT
    assert harmony_client.harmony_client.HarmonyError is harmonia.errors.HarmoniaError


FIRST = ["harmony_client.harmony_client", "harmony_client.parameters", "harmony_client.runtime.runner"]
FIRST += ["harmony_client.artifacts", "adaptive_harmony.graders", "adaptive_harmony.common"]


@pytest.mark.parametrize("module", FIRST)
def test_any_module_may_be_imported_first(module: str) -> None:
    """Recipes import these packages in any order, and start in a second: without torch."""
    code = f"import {module}, sys; assert 'torch' not in sys.modules"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=COMPAT)
    assert done.returncode == 0, done.stderr
