"""The node: one member as a pure engine, the asyncio shell that runs it, and the facade that the outside calls."""
