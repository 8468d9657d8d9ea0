"""Finds unknown metrics, labels and error codes in Prometheus queries, by regular expressions and without parsing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

from prometheus_client import Histogram

from musicgen_bento import errors
from musicgen_bento.runner import metrics

_METRIC_OBJECTS = dict(
    zip(
        metrics.METRIC_NAMES,
        (getattr(metrics.metrics(), field.name) for field in fields(metrics.Metrics)),
        strict=True,
    )
)
HISTOGRAMS = {name for name, metric in _METRIC_OBJECTS.items() if isinstance(metric, Histogram)}
# The labels of each metric, from musicgen_bento/runner/metrics.py.
METRICS = {
    name: {*metric._labelnames, *({"le"} if name in HISTOGRAMS else ())} for name, metric in _METRIC_OBJECTS.items()
}
EXTERNAL_METRICS = {"up", "kube_pod_container_status_restarts_total"}  # of Prometheus and of kube-state-metrics
TARGET_LABELS = {"namespace", "service", "pod", "container"}  # added by a ServiceMonitor
KEYWORDS = {"sum", "rate", "increase", "histogram_quantile", "and", "or", "unless"}


def find_problems(query: str) -> Iterator[str]:
    """Yield a message for each unbalanced bracket and each name in a query that does not exist."""
    if any(query.count(left) != query.count(right) for left, right in ("()", "[]", "{}")):
        yield f"brackets do not match: {query}"
    matchers = re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', query)
    yield from _unknown_codes(matchers)
    groups = re.findall(r"\bby\s*\(([^)]*)\)", query)
    labels = {label for label, _, _ in matchers} | {label.strip() for group in groups for label in group.split(",")}
    without_labels = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby\s*\([^)]*\)", " ", query)
    names = set(re.findall(r"[A-Za-z_:][\w:]*", without_labels)) - KEYWORDS - EXTERNAL_METRICS
    known_labels = set(TARGET_LABELS)
    for name in sorted(names):
        histogram = re.sub(r"_(bucket|sum|count)$", "", name)
        if name in METRICS and name not in HISTOGRAMS:
            known_labels |= METRICS[name]
        elif histogram in HISTOGRAMS and histogram != name:
            known_labels |= METRICS[histogram]
        else:
            yield f"nothing exports the metric {name}"
    if unknown := labels - known_labels:
        yield f"no metric of this query has the label {', '.join(sorted(unknown))}: {query}"


def _unknown_codes(matchers: list[tuple[str, str, str]]) -> Iterator[str]:
    codes = {error_type.code for error_type in vars(errors).values() if _is_error_type(error_type)}
    for label, operator, value in matchers:
        values = value.split("|") if operator.endswith("~") else [value]
        if label == "code" and (unknown := set(values) - codes):
            yield f"there is no error code {', '.join(sorted(unknown))}"


def _is_error_type(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.MusicGenError)
