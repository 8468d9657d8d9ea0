"""Kubernetes manifests, and the program that checks them.

check.py       `python -m deploy.check`: renders and checks every overlay
manifests.py   manifests as Python data
schemas.py     validation against the schemas of Kubernetes and of custom resources
rules.py       rules that no schema contains: consistency with each other and with the service
hardening.py   the rule of user, capabilities and writable folders
promql.py      metrics, labels and error codes in Prometheus queries
kubernetes/    the manifests: a base, components and overlays
"""
