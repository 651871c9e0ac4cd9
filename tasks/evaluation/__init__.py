"""Metrics, intervals, paired tests and calibration."""
