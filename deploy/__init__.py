"""Kubernetes manifests, and what checks them."""
