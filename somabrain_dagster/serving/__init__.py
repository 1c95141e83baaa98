"""The HTTP service: lands feedback durably and serves the weights. It never imports Dagster."""
