"""SomaBrain's learning-operations platform: from feedback to promoted weights and corpora, in Dagster."""

import os

__version__ = "0.1.0"

# onnxruntime reports its use over the network unless this is set before it is imported; nothing here reports.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
