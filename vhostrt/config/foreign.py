"""The RPC methods of SPDK v26.05 that a saved file may name and that mean nothing here.

They set up modules that vhostrt does without (sockets, buffer pools, copy engines, keys, VMD), or
tune what it has in another way. A file that SPDK has saved carries them even where nobody set
anything. Nothing that a virtual machine's disk is made of is in this list.
"""

IGNORED = frozenset((
    # Copy and crypto engines
    "accel_assign_opc", "accel_crypto_key_create", "accel_error_inject_error", "accel_set_driver",
    "accel_set_options", "ae4dma_scan_accel_module", "dpdk_cryptodev_scan_accel_module",
    "dpdk_cryptodev_set_driver", "dsa_scan_accel_module", "iaa_scan_accel_module",
    "ioat_scan_accel_module", "mlx5_scan_accel_module",
    # Sockets, buffer pools, keys
    "iobuf_set_options", "keyring_file_add_key", "keyring_linux_set_options",
    "sock_impl_set_options", "sock_set_default_impl",
    # Settings of block device modules
    "bdev_enable_histogram", "bdev_examine", "bdev_iscsi_set_options", "bdev_nvme_set_hotplug",
    "bdev_nvme_set_options", "bdev_raid_set_options", "bdev_virtio_blk_set_hotplug",
    # Other ways in than vhost, and devices behind a VMD
    "fsdev_set_opts", "iscsi_set_options", "nbd_start_disk", "nvmf_set_config", "nvmf_set_crdt",
    "nvmf_set_max_subsystems", "vmd_enable",
))
