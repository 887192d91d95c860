"""Prometheus: a collector for ``prometheus_client`` with the stats of all processes.

>>> from prometheus_client import REGISTRY
>>> REGISTRY.register(Collector("/var/lib/myapp/valued"))

The counts come from the directory that clients get as *status* or *outbox*, so whichever process
answers a scrape, they are those of all processes. In the multiprocess mode of ``prometheus_client``
register it on the registry that is exposed, beside ``MultiProcessCollector``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import registry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

import valued

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from prometheus_client.core import Metric


class Collector(registry.Collector):
    """The stats of all processes that write them in the directory *path*, at each scrape.

    *path*: default ``VALUED_STATUS``, else ``VALUED_OUTBOX``. Raises `ValidationError` if none is
    given. Before the first event all counts are zero. A scrape raises `OSError` if the directory
    can't be read. Between two scrapes it costs nothing.
    """

    def __init__(self, path: str | PathLike[str] | None = None) -> None:
        self._status = valued.Status(path)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what is registered needs no directory yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        for metric in self._status.read().metrics():
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            names = list(metric.samples[0][0]) if metric.samples else ["reason"]
            family = make(metric.name, metric.text, labels=names)
            for labels, value in metric.samples:
                family.add_metric(list(labels.values()), value)
            yield family
