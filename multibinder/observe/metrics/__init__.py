"""Prometheus metrics. Nothing here is registered anywhere by itself; docs/metrics.md describes each one."""
