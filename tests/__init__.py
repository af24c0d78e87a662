"""The tests. `tests.lib` holds what several of them share."""
