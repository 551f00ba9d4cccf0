"""A script outside of the servers that emits to their clients."""
