"""The dashboards of Grafana, as code: `python -m scripts.dashboards` writes them.

With Grafana's own SDK, which only whoever changes a dashboard needs. Each panel says in a sentence what it is
for. Gauges are told alike by every replica of the service, so a panel takes their maximum; what each replica
counts is added up. What happens a few times a day is shown as it has added up, not as a rate.
"""

from scripts.dashboards.learning import LEARNING
from scripts.dashboards.operations import OPERATIONS
from scripts.dashboards.service import SERVICE

BOARDS = (LEARNING, SERVICE, OPERATIONS)
