"""What is told of a fleet: `figures` for the page's `status` and Prometheus' `metrics`, and `readiness`."""
