"""Several models on one device, within a memory budget.

pool.py           models by name: add and abort requests, states
entry.py          one model of the pool, its state and its waiting requests
residency.py      fetches, loads and evicts models
memory_budget.py  decides which models fit and which are evicted
loader.py         checkpoint files to an engine
self_test.py      checks the output of the built-in model when it is loaded
device_thread.py  the thread that steps all engines of a device

Public name: `pool.ModelPool`. It is imported from its module, because `memory_budget` must load without torch.
"""
