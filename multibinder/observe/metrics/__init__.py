"""Prometheus metrics. Importing this package registers none of them; docs/metrics.md describes each one."""
