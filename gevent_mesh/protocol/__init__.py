"""The rules of the mesh, without input or output.

Nothing here waits, reads a clock, draws a random number, opens a socket or logs: time, randomness and bytes are
arguments, decisions and events are results. So every rule can be tested by the thousand.

=================  ====================================================================
`websocket`        frames of RFC 6455: bytes <-> (opcode, payload), bounded
`frames`           what one WebSocket message between two nodes may be
`handshake`        keys and proofs
`messages`         cluster messages: what nodes ask of each other
`session`          numbers, outbox, acknowledgement, resume, exact losses
`link`             one connection: puts the five above together; bytes in, events out
`membership`       states of peers, roster union, who dials, backoff
`peers`            sessions and links of all peers: exactly one link for each pair
`flow`             how long a sender waits for a peer that is behind
`discovery`        the wire between a node and a discovery server
`address`          what an address may look like
`tokens`           what a shared secret must be, and where one may listen without one
=================  ====================================================================
"""
