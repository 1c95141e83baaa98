"""The description and the service agree, whatever is sent: by schemathesis, all of its checks on."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from somabrain_dagster.serving.app import operations_of
from somabrain_dagster.serving.openapi import document
from somabrain_dagster.serving.operations import IDEMPOTENCY_KEY
from somabrain_dagster.settings import Settings
from tests.serving.conftest import OnItsOwn
from tests.serving.running import Running

pytestmark = pytest.mark.slow

EXAMPLES = 25
LONGEST_KEY = 200  # as `Word` has it

OPERATIONS = operations_of(Settings())
FOR_OPERATORS = {(one.method, one.path) for one in OPERATIONS if one.scope == "operator"}

configuration = SchemathesisConfig()
configuration.output.sanitization.update(enabled=False)
# The key is ours, always right: what may be wrong is the rest. That no text of a payload, however deep, may
# have a NUL is beyond a schema.
configuration.projects.default.generation.update(with_security_parameters=False, allow_x00=False)
schema = schemathesis.openapi.from_dict(document(OPERATIONS), config=configuration)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case: Any, service: Running, tenants_key: str) -> None:
    operator = (case.method.upper(), case.operation.path) in FOR_OPERATORS
    key = {"Authorization": f"Bearer {service.operator if operator else tenants_key}"}
    # A key that was used for another body is rightly refused: each example gets its own.
    # One that is wrong stays wrong.
    if IDEMPOTENCY_KEY.fullmatch(given := case.headers.get("Idempotency-Key", "")):
        case.headers["Idempotency-Key"] = f"{uuid4().hex}{given}"[:180].rstrip()
    for said in case.body if isinstance(case.body, list) else [case.body]:
        for name in ("idempotency_key", "key"):
            given = said.get(name) if isinstance(said, dict) else None
            if isinstance(given, str) and given.strip() and len(given) <= LONGEST_KEY:
                said[name] = f"{uuid4().hex}{given}"[:LONGEST_KEY]
    case.call_and_validate(base_url=service.url, headers=key)


@pytest.fixture(scope="module")
def service(on_its_own: OnItsOwn) -> Iterator[Running]:
    """Of its own: whatever is sent promotes weights too, by which tenants begin elsewhere ever after."""
    with on_its_own(10) as service:
        yield service


@pytest.fixture(scope="module")
def tenants_key(service: Running) -> str:
    return service.add_tenants(["contract"])["contract"]
