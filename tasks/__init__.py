"""The only place that knows Prefect, DVC and MLflow."""
