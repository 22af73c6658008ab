"""Fault injection into NATS, the network and the bridge, with a check of every client's messages.

``python -m tools.faults --list`` lists the faults.
"""
