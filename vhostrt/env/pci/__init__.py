"""The PCI bus of the environment: devices, drivers, BARs, configuration space, VFIO.

Nothing is imported here: who uses one part of it imports that part.
"""
