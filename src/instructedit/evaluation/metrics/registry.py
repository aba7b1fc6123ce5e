"""The metrics by name: the built-in ones, those of installed packages, and those that a program registers.

Another package adds metrics by entry points of the group ``instructedit.metrics``, each of which names a
:class:`~instructedit.evaluation.metrics.metric.Metric`, for example in its ``pyproject.toml``::

    [project.entry-points."instructedit.metrics"]
    my-metric = "my_package.my_module:MY_METRIC"

A program adds one by :func:`register_metric`. However it is added, it is then measured by ``instructedit evaluate`` and
experiments, and listed by ``instructedit metrics``.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import entry_points

from instructedit.errors import DataError, did_you_mean
from instructedit.evaluation.metrics.accuracy import ACCURACY_METRICS
from instructedit.evaluation.metrics.likelihood import LIKELIHOOD_METRICS
from instructedit.evaluation.metrics.metric import Metric, MetricGroup
from instructedit.evaluation.metrics.text import TEXT_METRICS
from instructedit.storage.reading import short_repr

logger = logging.getLogger(__name__)

ENTRY_POINTS = "instructedit.metrics"
BUILT_IN = (*ACCURACY_METRICS, *LIKELIHOOD_METRICS, *TEXT_METRICS)
_REGISTERED: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Make a metric known by its name, and return it.

    Raises:
        DataError: the name is taken.
    """
    if metric.name in _by_name():
        raise DataError(f"a metric named {metric.name!r} is already registered; choose another `name`")
    _REGISTERED[metric.name] = metric
    return metric


def registered_metrics(*groups: MetricGroup) -> tuple[Metric, ...]:
    """Return the metrics of the given groups, or all without any, in display order."""
    return tuple(metric for metric in _by_name().values() if not groups or metric.group in groups)


def get_metric(name: str) -> Metric:
    """Return the metric of this name.

    Raises:
        DataError: there is none; the nearest name is suggested.
    """
    metrics = _by_name()
    if name not in metrics:
        hint = did_you_mean(name, metrics)
        raise DataError(f"no metric is named {short_repr(name)}.{hint} `instructedit metrics` lists all")
    return metrics[name]


def _by_name() -> dict[str, Metric]:
    return {metric.name: metric for metric in (*BUILT_IN, *_of_packages(), *_REGISTERED.values())}


@cache
def _of_packages() -> tuple[Metric, ...]:
    """Load the metrics of installed packages; one that cannot be used is left out with a warning."""
    metrics = {metric.name: metric for metric in BUILT_IN}
    for point in entry_points(group=ENTRY_POINTS):
        where = f"the metric {point.name!r} ({point.value})"
        try:
            metric = point.load()
        except (ImportError, AttributeError) as error:
            logger.warning("%s cannot be imported: %s; fix or uninstall the package that adds it", where, error)
            continue
        if not isinstance(metric, Metric):
            logger.warning("%s is ignored: it is not an instructedit.evaluation.metrics.Metric", where)
        elif metric.name in metrics:
            logger.warning("%s is ignored: a metric named %r exists already", where, metric.name)
        else:
            metrics[metric.name] = metric
    return tuple(metrics.values())[len(BUILT_IN) :]
