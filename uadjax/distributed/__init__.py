"""Several devices and several processes: meshes, placement, barriers, cluster environments.

`mesh` places arrays on devices, `processes` coordinates the processes of a run, and `cluster_env`
reads what SLURM, Open MPI and TPU pods report about them.
"""
