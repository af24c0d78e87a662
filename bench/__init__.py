"""The benchmarks: bench_AREA_TOPIC.py over loops that run in C, in cy_AREA_TOPIC.pyx."""
