"""What a Prometheus query names. Not a parser: enough to find a metric, a label or an error code that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

from prometheus_client import Histogram

from musicgen_bento import errors
from musicgen_bento.runner import metrics

_INSTRUMENTS = dict(
    zip(metrics.METRIC_NAMES, (getattr(metrics.metrics(), f.name) for f in fields(metrics.Metrics)), strict=True)
)
HISTOGRAMS = {name for name, instrument in _INSTRUMENTS.items() if isinstance(instrument, Histogram)}
# Metric → its own labels, as musicgen_bento/runner/metrics.py has them.
METRICS = {
    name: {*instrument._labelnames, *({"le"} if name in HISTOGRAMS else ())}
    for name, instrument in _INSTRUMENTS.items()
}
FOREIGN = {"up", "kube_pod_container_status_restarts_total"}  # Prometheus' own, and kube-state-metrics'
TARGET = {"namespace", "service", "pod", "container"}  # what a ServiceMonitor adds
WORDS = {"sum", "rate", "increase", "histogram_quantile", "and", "or", "unless"}


def problems(query: str) -> Iterator[str]:
    """Names in a query that nothing exports."""
    if any(query.count(left) != query.count(right) for left, right in ("()", "[]", "{}")):
        yield f"brackets do not match: {query}"
    matchers = re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', query)
    codes = {kind.code for kind in vars(errors).values() if _is_error(kind)}
    for label, operator, value in matchers:
        values = value.split("|") if operator.endswith("~") else [value]
        if label == "code" and (unknown := set(values) - codes):
            yield f"there is no error code {', '.join(sorted(unknown))}"
    groups = re.findall(r"\bby\s*\(([^)]*)\)", query)
    labels = {label for label, _, _ in matchers} | {label.strip() for group in groups for label in group.split(",")}
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby\s*\([^)]*\)", " ", query)
    own = set()
    for name in sorted(set(re.findall(r"[A-Za-z_:][\w:]*", bare)) - WORDS - FOREIGN):
        metric = re.sub(r"_(bucket|sum|count)$", "", name)
        if name in METRICS and name not in HISTOGRAMS:
            own |= METRICS[name]
        elif metric in HISTOGRAMS and metric != name:
            own |= METRICS[metric]
        else:
            yield f"nothing exports the metric {name}"
    if unknown := labels - TARGET - own:
        yield f"no metric of this query has the label {', '.join(sorted(unknown))}: {query}"


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.MusicGenError)
