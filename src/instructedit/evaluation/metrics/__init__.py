"""Registered metrics: the queries that each needs about an edit, and the formula of its value."""

from instructedit.evaluation.metrics.metric import Direction, Metric, MetricGroup, Unit
from instructedit.evaluation.metrics.query import Criterion, MetricQuery, ResponseKind, Result
from instructedit.evaluation.metrics.registry import get_metric, register_metric, registered_metrics

__all__ = [
    "Criterion",
    "Direction",
    "Metric",
    "MetricGroup",
    "MetricQuery",
    "ResponseKind",
    "Result",
    "Unit",
    "get_metric",
    "register_metric",
    "registered_metrics",
]
