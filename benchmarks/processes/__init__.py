"""Forks, forked workers, the import, and a process that is idle."""
