"""Other implementations of T5, each measured in a process of its own by an interpreter of its own.

A peer is a script here that needs nothing of flaxformer. `client.py` starts one and talks to it in lines of JSON, as
`serve.py` states it.
"""
