"""Validation: accuracy and latency of exported files, held against the budgets of a target."""
