"""What crosses the boundary between the HTTP process and the inference process.

protocol.py       frames: the events of a request as bytes
request_table.py  requests by id, on the side of the runner
client.py         calls of the HTTP process to the runner
metrics.py        Prometheus metrics of requests and models
"""
