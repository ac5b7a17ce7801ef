"""Tests of kvserver.storage."""
