"""
What a unit costs beside the session that it wraps, and beside others. Run ``uv run python -m benchmarks --help``.
"""
