"""World models: what comes next, learned from logs."""

from fedmorl.world_models.transition import TransitionConfig, TransitionModel

__all__ = ["TransitionConfig", "TransitionModel"]
