"""Registered metrics: what each asks of an edited model and how its value is computed."""

from instructedit.evaluation.metrics.metric import Direction, Metric, MetricGroup, Unit
from instructedit.evaluation.metrics.registry import get_metric, register_metric, registered_metrics

__all__ = ["Direction", "Metric", "MetricGroup", "Unit", "get_metric", "register_metric", "registered_metrics"]
