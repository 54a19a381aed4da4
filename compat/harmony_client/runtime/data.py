"""Configurations, kinds of datasets, graders as the platform describes them."""

from harmonia.client.data import AdaptiveDatasetKind, AdaptiveGrader, PrebuiltConfigKey
from harmonia.client.data import Function as FunctionGrader
from harmonia.client.data import Judge as CustomJudge
from harmonia.client.data import JudgeExample as CustomJudgeExample
from harmonia.client.data import Prebuilt as PrebuiltJudge
from harmonia.client.data import Remote as RemoteRewardEndpoint
from harmonia.client.recipe import InputConfig

__all__ = [
    "AdaptiveDatasetKind",
    "AdaptiveGrader",
    "CustomJudge",
    "CustomJudgeExample",
    "FunctionGrader",
    "InputConfig",
    "PrebuiltConfigKey",
    "PrebuiltJudge",
    "RemoteRewardEndpoint",
]
