"""
Example applications.
"""
