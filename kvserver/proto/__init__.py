"""The protocol's messages: our ``.proto`` files and the modules generated from them.

``make proto`` regenerates (``python -m kvserver.proto.generate``); a test fails when the committed modules are stale.
"""
