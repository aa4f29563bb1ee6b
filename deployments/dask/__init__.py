"""Dask clusters for the data stages: on Slurm by dask-jobqueue, on Kubernetes by the operator of dask-kubernetes."""
