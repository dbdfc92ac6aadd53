"""What a model takes before it is loaded: parameters, memory to caption and to train, disk, operations and hours."""

from .arguments import PlanArguments
from .model_plan import ModelPlan
from .planner import plan_model


__all__ = ["ModelPlan", "PlanArguments", "plan_model"]
