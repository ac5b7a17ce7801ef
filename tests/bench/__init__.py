"""Benchmarks: our node beside genuine etcd on the same machine, in turn, under the same load.

``make bench`` runs all; ``python -m tests.bench --help`` tells more. Absolute figures depend on the machine and on what
else it does, so each row carries the ratio of medians of runs that took turns.
"""
