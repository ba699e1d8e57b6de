"""The fault lab: seeded schedules of faults over a real broker, real Ray and a real S3 server, and a checker of every byte.

``make soak``, or ``python -m tests.lab --help``.
"""
