"""Connects the HTTP process with the runner, the process that holds the models.

protocol.py       messages between the two processes: admission, and events as binary frames
request_table.py  in the runner: requests by id, with the events that are not collected yet
client.py         in the HTTP process: calls to the runner
metrics.py        Prometheus metrics of requests, models and errors, in both processes

Public names: `protocol.AdmitMsg`, `protocol.FrameDecoder`, `protocol.encode`, `request_table.RequestTable`,
`client.RunnerClient`, `client.AssembledAudio`, `client.remove_session_limits`, `metrics.RequestMetrics`,
`metrics.METRIC_NAMES`, `metrics.count_error`, `metrics.count_load`, `metrics.count_eviction`.
"""
