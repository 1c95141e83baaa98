"""Traces leave by OTLP: a collector of its own receives the spans of real requests, and nothing secret."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.serving.conftest import QUICK, OnItsOwn
from tests.serving.running import until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TEXT = "the harbour was full of sailing boats"


class Collector(ThreadingHTTPServer):
    """An OTLP endpoint over HTTP: it decodes what it receives and keeps it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Export)
        self.received: list[ExportTraceServiceRequest] = []

    def spans(self) -> dict[str, dict[str, Any]]:
        """The server spans by name: trace, parent and attributes."""
        return {
            span.name: {
                "service": {each.key: plain(each.value) for each in of_resource.resource.attributes}[
                    "service.name"
                ],
                "trace": span.trace_id.hex(),
                "parent": span.parent_span_id.hex(),
                **{each.key: plain(each.value) for each in span.attributes},
            }
            for request in self.received
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
            if span.kind == span.SPAN_KIND_SERVER
        }


class _Export(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        known = (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        if known:
            self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200 if known else 400)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def test_a_collector_receives_the_spans_of_requests_and_no_secret(on_its_own: OnItsOwn) -> None:
    with (
        collecting() as collector,
        on_its_own(
            6,
            QUICK
            | {
                "SOMABRAIN_SERVICE_TELEMETRY": "1",
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
                "OTEL_SERVICE_NAME": "somabrain",
                "OTEL_BSP_SCHEDULE_DELAY": "50",
            },
        ) as service,
    ):
        tenant = f"tenant-{uuid4().hex[:10]}"
        key = service.add_tenants([tenant])[tenant]
        with service.client(key, {"traceparent": f"00-{TRACE}-{PARENT}-01"}) as client:
            landed = client.post("/context/feedback", json={"session_id": "s", "utility": 0.5})
            refused = client.post("/context/feedback", json={"session_id": TEXT, "utility": 2})
            client.post("/memory/remember", json={"text": TEXT})
        assert (landed.status_code, refused.status_code) == (200, 422)
        until(lambda: "POST /memory/remember" in collector.spans())
    spans = collector.spans()  # the service has ended: what it still had it has sent
    feedback = spans["POST /context/feedback"]
    assert (feedback["service"], feedback["trace"], feedback["parent"]) == ("somabrain", TRACE, PARENT)
    assert feedback["http.status_code"] == 422
    said = "".join(map(str, collector.received))
    assert key.split("_", 2)[2] not in said
    assert TEXT not in said
