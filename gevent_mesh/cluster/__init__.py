"""Questions to all nodes, and what they are answered with.

==================  =====================================================================
`api`               the methods that `GeventMeshManager` has for it
`results`           what they return
`requests`          whom a question went to, and what is missing
`queries`           sockets, counts, rooms, counted commands: asking and answering
`acknowledgements`  events that clients acknowledge
`events`            events that servers handle
==================  =====================================================================
"""
