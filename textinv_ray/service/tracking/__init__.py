"""The store in MLflow: written while a job runs, rebuilt at any time, read for approvals."""
