"""The recipe: one typed description of an experiment, which refuses unknown keys.

Recipes are files in `workflows/recipes/`; the one in force for a run is the run's `recipe.toml`.
Every field is documented below its name.
"""

from common.config.data import (
    ColumnMap,
    DatasetSource,
    GeneratorSource,
    GymSource,
    Source,
    TaskName,
    VerifyType,
)
from common.config.objective import (
    AdvantageKind,
    AdvantagesConfig,
    Aggregation,
    KlKind,
    ObjectiveConfig,
    PolicyTermName,
    RatioLevel,
    ReferenceConfig,
    SamplerCorrection,
    SamplerLevel,
    config_warnings,
)
from common.config.presets import PRESETS, PresetName, overruled
from common.config.recipe import (
    EvaluateConfig,
    LogprobsConfig,
    MeshConfig,
    ModelConfig,
    PromptConfig,
    Recipe,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from common.config.rewards import FunctionReward, JudgeEndpoint, RewardsConfig
from common.config.section import Section

__all__ = [
    "PRESETS",
    "AdvantageKind",
    "AdvantagesConfig",
    "Aggregation",
    "ColumnMap",
    "DatasetSource",
    "EvaluateConfig",
    "FunctionReward",
    "GeneratorSource",
    "GymSource",
    "JudgeEndpoint",
    "KlKind",
    "LogprobsConfig",
    "MeshConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PolicyTermName",
    "PresetName",
    "PromptConfig",
    "RatioLevel",
    "Recipe",
    "ReferenceConfig",
    "RewardsConfig",
    "RolloutConfig",
    "RunConfig",
    "SamplerCorrection",
    "SamplerLevel",
    "Section",
    "Source",
    "TaskName",
    "TrainConfig",
    "VerifyType",
    "config_warnings",
    "overruled",
]
