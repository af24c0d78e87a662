"""Figures for Prometheus: what the option --metrics serves.

docs/monitoring.md lists the metrics; nothing of this is imported unless the option is given.
"""
