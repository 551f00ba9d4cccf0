"""The demo: a chat on several servers of this machine, and a proof that they share everything.

===========  ==================================================================
`commands`   what the commands do
`processes`  discovery and the servers, as children of this process
`check`      real clients that try everything across servers
`child`      runs a module so that it ends when its parent does
===========  ==================================================================
"""
