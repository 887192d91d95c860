"""What frameworks, servers and task queues need: one module for each, imported by name.

Each imports its framework and what ``valued`` exports, and nothing else of ours. Nothing here is
imported by ``import valued``.
"""
