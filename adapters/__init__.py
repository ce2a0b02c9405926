"""
Adapters of the port, one folder or module per technology.
"""
