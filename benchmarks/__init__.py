"""What the library costs, against yardsticks that are measured in the same run.

``python -m benchmarks --help`` says what can be measured. A folder answers one question:

* ``caller``: what a call takes of the thread that makes it;
* ``delivery``: what a delivered event takes of the process, and how many a second there are;
* ``processes``: forks, forked workers, the import, an idle process;
* ``durability``: what an outbox adds;
* ``peers``: other clients, in the same rows and in the same situations;
* ``programs``: longer runs that a person starts by hand.

A measurement is a module: its ``rows`` or ``measured`` asks for the figures, and its ``main`` takes
them in a process of its own, so that no measurement disturbs another.
"""
