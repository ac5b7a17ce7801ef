"""The tour: ``make demo``, or ``python -m examples.demo``.

A node is started in this process, and real processes play on it: services that register, workers that contend for a
lock, candidates of an election, a subscriber, a program that follows its configuration. Some of them are killed.
``roles`` is what those processes run, ``stage`` starts them and listens to them, ``tour`` is the play.
"""
