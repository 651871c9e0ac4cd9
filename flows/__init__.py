"""Prefect flows: they schedule, run and show the stages of dvc.yaml and compute nothing."""
