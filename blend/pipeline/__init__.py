"""A run from its configuration to its end: `order.py` states the order of the stages that the others hold."""

from blend.pipeline.order import resume, start

__all__ = ["resume", "start"]
