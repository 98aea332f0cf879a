"""Offline multi-agent reinforcement learning with learned world models, on a shared wireless channel."""

__version__ = "0.1.0"
