"""What this project is measured against, in one run and on the same bytes: ``python -m benchmarks``, or ``make bench``.

A module for each kind of work makes *cases*; ``harness`` runs them; ``report`` writes what came of it.
"""
