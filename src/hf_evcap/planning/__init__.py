"""What a model takes before it is loaded: parameters, memory to caption and to train, disk, operations and hours."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports
from .arguments import PlanArguments


if TYPE_CHECKING:
    from .model_plan import ModelPlan as ModelPlan
    from .planner import plan_model as plan_model

__getattr__ = lazy_exports(__name__, {"ModelPlan": "model_plan", "plan_model": "planner"})

__all__ = ["ModelPlan", "PlanArguments", "plan_model"]
