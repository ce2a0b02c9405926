"""
Crashes of processes, servers and networks in distributed commits.
"""
