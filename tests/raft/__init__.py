"""Tests of kvserver.raft."""
