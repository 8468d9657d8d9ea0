"""Benchmarks: commands that measure this service and its baselines. None of them is a test."""
