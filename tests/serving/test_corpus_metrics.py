"""What corpora hold of a tenant is read at the scrape, from Postgres."""

from somabrain_dagster.store.corpora import Given, record_corpus
from tests.serving.running import Running

Tenant = tuple[str, str]


def test_metrics_tell_of_exports_examples_tokens_and_rejects(service: Running, tenant: Tenant) -> None:
    name, _ = tenant
    manifest = {"corpus_id": f"corpus-of-{name}", "kind": "corpus", "scope": "pooled", "position": "0"}
    given = [Given(name, examples=7, tokens=90, rejected={"normalise": 3, "reward": 2})]
    for _ in range(2):
        with service.database.as_operator() as connection:
            record_corpus(connection, "file:///nowhere", manifest, given, "ada")
    with service.client(service.operator) as operator:
        lines = operator.get("/metrics").text.splitlines()
    assert f'somabrain_corpus_exports_total{{tenant_id="{name}"}} 2.0' in lines
    assert f'somabrain_corpus_examples_total{{tenant_id="{name}"}} 14.0' in lines
    assert f'somabrain_corpus_tokens_total{{tenant_id="{name}"}} 180.0' in lines
    assert f'somabrain_corpus_rejects_total{{stage="normalise",tenant_id="{name}"}} 6.0' in lines
