"""The HTTP process: it validates requests, has the runner generate the audio, encodes and sends it. It needs no torch.

service.py          the two BentoML services, MusicGenService (HTTP) and MusicGenRunner (device)
generation.py       Generator: a request to a response, through the runner; models and readiness
responses.py        responses with a finished clip or a growing one; audio_buffer.py and response_buffer.py hold it
jobs.py, job.py     jobs: requests that are finished without an open connection
routes.py           the page and GET /models; job_routes.py has the routes of the jobs; static/ is the page
middleware.py       checks bodies, handles errors, logs; with request_body.py, request_context.py, error_responses.py
shutdown.py         finishes running work on SIGTERM; tasks.py has helpers for asyncio
openapi.py          corrects BentoML's API document

Public names: service.MusicGenService, service.MusicGenRunner.
"""
