"""Everything that waits: greenlets and sockets.

===========  ==========================================================================
`mesh`       a node's place in the mesh: links, listener, clients of discovery
`outboxes`   sending, at a pace that everybody can keep up with
`link`       the greenlets of one link
`listener`   where other nodes come in, and what strangers may cost
`dialer`     opening a connection to another node
`discovery`  the client of one discovery server
`transport`  one TCP connection: bytes, and three ways to end it
`pause`      giving way to everybody else
===========  ==========================================================================
"""
