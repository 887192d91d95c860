"""What the library costs, against yardsticks that are measured in the same run.

``python -m benchmarks --help`` says what can be measured. Each measurement is a module here that
runs in a process of its own, so that none disturbs another one: `benchmarks.subprocesses`.
"""
