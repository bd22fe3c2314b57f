"""Several devices and several processes: meshes, placement, barriers, cluster environments.

`mesh` is about the devices that arrays lie on, `processes` about the processes that share a run,
and `cluster_env` about what Slurm, Open MPI and TPU pods say of them.
"""
