"""Traces by OpenTelemetry, where its packages are installed and the settings ask for them."""

from importlib import import_module
from typing import Any


class TelemetryMissing(RuntimeError):
    """The packages are not installed; the message says how to install them."""


def traced(app: Any) -> Any:
    """An ASGI application whose requests are traced; OTEL_* variables say where the traces go.

    Raises:
        TelemetryMissing: the packages are not installed.
    """
    try:
        trace = import_module("opentelemetry.trace")
        sdk = import_module("opentelemetry.sdk.trace")
        export = import_module("opentelemetry.sdk.trace.export")
        otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        asgi = import_module("opentelemetry.instrumentation.asgi")
    except ImportError as error:
        raise TelemetryMissing(
            "SOMABRAIN_SERVICE_TELEMETRY needs OpenTelemetry: pip install 'somabrain-dagster[telemetry]'"
        ) from error
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return asgi.OpenTelemetryMiddleware(app)
