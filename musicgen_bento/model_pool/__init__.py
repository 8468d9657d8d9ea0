"""Several models on one device, within a memory budget.

pool.py           models by name: submit, cancel, status
entry.py          one model of the pool and its pending requests
residency.py      loads and evicts models
memory_budget.py  decides which models fit and which are evicted
loader.py         checkpoint files to an engine
self_test.py      checks the output of the built-in model at start
device_thread.py  the one thread that steps all engines of a device
"""
